//! The collector's own certificate: made at the first start, kept from then on, so that agents
//! which booted before a restart still know it. Control never sees its key.

use std::path::Path;

use croft_proto::{COLLECTOR_SERVER_NAME, Secret};

use crate::durable::{self, DurableError};

/// The certificate could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("the collector's certificate could not be made")]
    Make(#[from] rcgen::Error),
    #[error("the collector's certificate could not be kept")]
    Keep(#[from] DurableError),
    #[error("collector.pem or collector.key in the state directory is not text; remove both")]
    Damaged,
}

/// What the collector shows, and proves that it is.
#[derive(Debug)]
pub(crate) struct CollectorCertificate {
    pem: String,
    key: Secret,
}

impl CollectorCertificate {
    /// Reads `collector.pem` and `collector.key`, or makes both. The key is written first: a
    /// certificate without a key never exists.
    ///
    /// # Errors
    /// They cannot be made, kept or read.
    pub(crate) fn load(state_dir: &Path) -> Result<Self, CertificateError> {
        let (pem, key) = (state_dir.join("collector.pem"), state_dir.join("collector.key"));
        if let (Some(pem), Some(key)) = (durable::read(&pem)?, durable::read(&key)?) {
            let text = |bytes| String::from_utf8(bytes).map_err(|_| CertificateError::Damaged);
            return Ok(Self { pem: text(pem)?, key: Secret::new(text(key)?) });
        }
        let made = rcgen::generate_simple_self_signed([COLLECTOR_SERVER_NAME.to_owned()])?;
        let this =
            Self { pem: made.cert.pem(), key: Secret::new(made.signing_key.serialize_pem()) };
        durable::write(&key, this.key.expose().as_bytes())?;
        durable::write(&pem, this.pem.as_bytes())?;
        Ok(this)
    }

    /// The certificate, PEM: it goes into each node's initrd.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key, PEM.
    pub(crate) fn key(&self) -> &Secret {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = CollectorCertificate::load(dir.path()).expect("made");
        let second = CollectorCertificate::load(dir.path()).expect("read");
        assert_eq!(first.pem(), second.pem());
        assert!(first.pem().contains("BEGIN CERTIFICATE"));
        assert!(!format!("{first:?}").contains("PRIVATE KEY"));
    }
}
