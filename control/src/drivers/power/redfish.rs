//! Redfish (DMTF DSP0266): power state, boot override and reset of one system.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Client, Method, StatusCode, redirect};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tracing::debug;

use super::{PowerState, WantedPower, plan};
use crate::model::Bmc;

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest body that is read, in bytes.
const MAX_BODY: usize = 256 << 10;

/// Requests under way at once, over all BMCs.
const MAX_CONCURRENT: usize = 32;

/// Why a BMC could not be asked or told.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    /// The password file cannot be read.
    #[error("BMC password file {path}: cannot be read; give control's user access to it")]
    Password {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The CA file cannot be used.
    #[error("BMC CA file {path}: {fault}; it must hold a PEM certificate")]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: String,
    },
    /// The HTTP client cannot be made.
    #[error("HTTP client: cannot be made")]
    Client(#[source] reqwest::Error),
    /// No answer.
    #[error("BMC {url}: no answer; check that it is up and reachable from control")]
    Request {
        /// The resource.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that says no.
    #[error("BMC {url}: answered {status}; check the URL, the user and the password")]
    Status {
        /// The resource.
        url: String,
        /// The HTTP status.
        status: StatusCode,
    },
    /// An answer that cannot be understood.
    #[error("BMC {url}: {fault}; is it a Redfish service?")]
    Answer {
        /// The resource.
        url: String,
        /// What is wrong.
        fault: String,
    },
}

/// A Redfish client for every BMC of the grid.
#[derive(Debug)]
pub struct Redfish {
    client: Client,
    places: Semaphore,
}

fn builder() -> reqwest::ClientBuilder {
    // BMCs are on the control LAN: no proxy, and credentials follow no redirect.
    Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(TIMEOUT)
        .no_proxy()
        .redirect(redirect::Policy::none())
}

impl Redfish {
    /// A client without connections yet.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new() -> Result<Self, PowerError> {
        let client = builder().build().map_err(PowerError::Client)?;
        Ok(Self { client, places: Semaphore::new(MAX_CONCURRENT) })
    }

    /// Reads the power state.
    ///
    /// # Errors
    /// See [`PowerError`].
    pub async fn power(&self, bmc: &Bmc) -> Result<PowerState, PowerError> {
        let url = system_url(bmc);
        let body = self.send(bmc, Method::GET, &url, None).await?;
        parse_power(&body).map_err(|fault| PowerError::Answer { url, fault })
    }

    /// Brings the power to where it should be and says what it is then: one step, to be repeated
    /// until it is as wanted. Powering on asks the firmware to boot from the network first.
    ///
    /// # Errors
    /// See [`PowerError`].
    pub async fn bring(&self, bmc: &Bmc, wanted: WantedPower) -> Result<PowerState, PowerError> {
        let seen = self.power(bmc).await?;
        let Some(reset) = plan(seen, wanted) else { return Ok(seen) };
        if wanted == WantedPower::On {
            // Many BMCs refuse or ignore this; nodes boot from the network first anyway and bootd
            // decides each boot, so a refusal is no failure.
            let boot = json!({"Boot": {
                "BootSourceOverrideTarget": "Pxe",
                "BootSourceOverrideEnabled": "Once",
            }});
            if let Err(error) = self.send(bmc, Method::PATCH, &system_url(bmc), Some(&boot)).await {
                debug!(url = bmc.url, %error, "boot override refused");
            }
        }
        let url = format!("{}/Actions/ComputerSystem.Reset", system_url(bmc));
        self.send(bmc, Method::POST, &url, Some(&json!({"ResetType": reset}))).await?;
        self.power(bmc).await
    }

    async fn send(
        &self,
        bmc: &Bmc,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, PowerError> {
        let failed = |source: reqwest::Error| PowerError::Request {
            url: url.to_owned(),
            source: source.without_url(),
        };
        // The semaphore is never closed.
        let _place = self.places.acquire().await.ok();
        let password = tokio::fs::read_to_string(&bmc.password_file)
            .await
            .map_err(|source| PowerError::Password { path: bmc.password_file.clone(), source })?;
        let own;
        let client = match &bmc.ca_file {
            None => &self.client,
            Some(path) => {
                own = trusting(path).await?;
                &own
            }
        };
        let mut request =
            client.request(method, url).basic_auth(&bmc.username, Some(password.trim_end()));
        if let Some(body) = body {
            request = request.json(body);
        }
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if !status.is_success() {
            return Err(PowerError::Status { url: url.to_owned(), status });
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_BODY {
                let fault = format!("the answer is longer than {MAX_BODY} bytes");
                return Err(PowerError::Answer { url: url.to_owned(), fault });
            }
        }
        Ok(bytes)
    }
}

async fn trusting(path: &PathBuf) -> Result<Client, PowerError> {
    let fault = |fault: String| PowerError::Authority { path: path.clone(), fault };
    let pem = tokio::fs::read(path).await.map_err(|e| fault(e.to_string()))?;
    let root = reqwest::Certificate::from_pem(&pem).map_err(|e| fault(e.to_string()))?;
    builder().add_root_certificate(root).build().map_err(PowerError::Client)
}

fn system_url(bmc: &Bmc) -> String {
    format!("{}/redfish/v1/Systems/{}", bmc.url, bmc.system)
}

fn parse_power(body: &[u8]) -> Result<PowerState, String> {
    let system: Value = serde_json::from_slice(body).map_err(|e| format!("not JSON: {e}"))?;
    match system.get("PowerState").and_then(Value::as_str) {
        Some("On") => Ok(PowerState::On),
        Some("Off") => Ok(PowerState::Off),
        Some(_) => Ok(PowerState::Between),
        None => Err("the system has no PowerState".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn power_states_are_read() {
        assert_eq!(parse_power(br#"{"PowerState": "On"}"#), Ok(PowerState::On));
        assert_eq!(parse_power(br#"{"PowerState": "Off", "x": 1}"#), Ok(PowerState::Off));
        assert_eq!(parse_power(br#"{"PowerState": "PoweringOn"}"#), Ok(PowerState::Between));
        assert!(parse_power(b"{}").is_err() && parse_power(b"<html>").is_err());
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_power(&body);
        }
    }
}
