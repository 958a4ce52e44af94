//! Redfish (DMTF DSP0266): power state, boot override and reset of one system.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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

/// Power-ons under way at once, over all BMCs. Nothing else waits for a place: each node has at
/// most one request under way, and a node must be seen and switched off whatever becomes of others.
const POWER_ONS: usize = 32;

/// A BMC that kept us waiting for so long and then failed is left alone for a while.
const SLOW: Duration = Duration::from_secs(1);

/// For how long.
const PAUSE: Duration = Duration::from_secs(5);

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
        source: Arc<reqwest::Error>,
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
    power_ons: Semaphore,
    /// By system: those that gave no answer, so that its node does not wait for it at each step.
    away: Mutex<HashMap<String, Away>>,
}

/// What became of the last request to a system.
#[derive(Debug)]
struct Away {
    until: Instant,
    url: String,
    source: Arc<reqwest::Error>,
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
        Ok(Self { client, power_ons: Semaphore::new(POWER_ONS), away: Mutex::default() })
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
        let _place = match wanted {
            // The semaphore is never closed.
            WantedPower::On => self.power_ons.acquire().await.ok(),
            WantedPower::Off => None,
        };
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

    /// Sends a request, unless the system kept the last one waiting for nothing a moment ago: then
    /// that one's error is the answer.
    async fn send(
        &self,
        bmc: &Bmc,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, PowerError> {
        let system = system_url(bmc);
        if let Some(Away { url, source, .. }) = self.away().get(&system) {
            let (url, source) = (url.clone(), Arc::clone(source));
            return Err(PowerError::Request { url, source });
        }
        let began = Instant::now();
        let result = self.exchange(bmc, method, url, body).await;
        if let Err(PowerError::Request { url, source }) = &result
            && began.elapsed() >= SLOW
        {
            let (url, source) = (url.clone(), Arc::clone(source));
            let until = Instant::now() + PAUSE;
            self.away().insert(system, Away { until, url, source });
        }
        result
    }

    /// Systems that are to be left alone now.
    fn away(&self) -> MutexGuard<'_, HashMap<String, Away>> {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.retain(|_, system| system.until > Instant::now());
        away
    }

    async fn exchange(
        &self,
        bmc: &Bmc,
        method: Method,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, PowerError> {
        let failed = |source: reqwest::Error| PowerError::Request {
            url: url.to_owned(),
            source: Arc::new(source.without_url()),
        };
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
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    #[test]
    fn power_states_are_read() {
        assert_eq!(parse_power(br#"{"PowerState": "On"}"#), Ok(PowerState::On));
        assert_eq!(parse_power(br#"{"PowerState": "Off", "x": 1}"#), Ok(PowerState::Off));
        assert_eq!(parse_power(br#"{"PowerState": "PoweringOn"}"#), Ok(PowerState::Between));
        assert!(parse_power(b"{}").is_err() && parse_power(b"<html>").is_err());
    }

    /// A password file and a BMC whose one system is said to be off, or that says nothing.
    async fn bmc(tasks: &mut JoinSet<()>, password: &Path, answers: bool) -> (Bmc, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let requests = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&requests);
        tasks.spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                if answers {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await.expect("a request");
                    let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 20\r\n\r\n\
                                  {\"PowerState\":\"Off\"}";
                    stream.write_all(answer.as_bytes()).await.expect("sent");
                }
                held.push(stream);
            }
        });
        let bmc = Bmc {
            url: format!("http://{address}"),
            system: "n1".to_owned(),
            username: "croft".to_owned(),
            password_file: password.to_owned(),
            ca_file: None,
        };
        (bmc, requests)
    }

    #[tokio::test]
    async fn bmcs_that_hang_hold_up_no_other_and_not_even_their_own_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let password = dir.path().join("password");
        std::fs::write(&password, "secret").expect("written");
        let mut tasks = JoinSet::new();
        let redfish = Arc::new(Redfish::new().expect("a client"));
        let (hung, requests) = bmc(&mut tasks, &password, false).await;
        let (sound, _) = bmc(&mut tasks, &password, true).await;

        // More systems hang than may be powered on at once.
        let systems: Vec<_> =
            (0..2 * POWER_ONS).map(|i| Bmc { system: format!("n{i}"), ..hung.clone() }).collect();
        let mut stuck = JoinSet::new();
        for system in systems.clone() {
            let redfish = Arc::clone(&redfish);
            stuck.spawn(async move { redfish.power(&system).await });
        }
        let end = Instant::now() + TIMEOUT;
        while requests.load(Ordering::SeqCst) < systems.len() as u32 {
            assert!(Instant::now() < end, "requests wait for places");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let start = Instant::now();
        let state = redfish.bring(&sound, WantedPower::Off).await;
        assert!(matches!(state, Ok(PowerState::Off)), "{state:?}");
        assert!(start.elapsed() < TIMEOUT / 2, "it waited {:?}", start.elapsed());

        while let Some(outcome) = stuck.join_next().await {
            let outcome = outcome.expect("no panic");
            assert!(matches!(outcome, Err(PowerError::Request { .. })), "{outcome:?}");
        }
        let (before, start) = (requests.load(Ordering::SeqCst), Instant::now());
        let again = redfish.power(&systems[0]).await;
        assert!(matches!(again, Err(PowerError::Request { .. })), "{again:?}");
        assert!(start.elapsed() < TIMEOUT / 2, "it waited {:?}", start.elapsed());
        assert_eq!(requests.load(Ordering::SeqCst), before, "it was asked again at once");
    }

    proptest! {
        #[test]
        fn no_body_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_power(&body);
        }
    }
}
