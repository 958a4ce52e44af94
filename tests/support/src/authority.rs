//! A grid's certificate authority, and control's side of bootd's door.

use std::io;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity};

const BOOTD: &str = "bootd0.croft.internal";

/// One authority, one bootd, one control.
#[derive(Debug)]
pub struct Authority {
    ca: String,
    bootd: (String, String),
    control: (String, String),
}

impl Authority {
    /// With new keys.
    ///
    /// # Errors
    /// No key can be made.
    pub fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let leaf = |name: &str| -> Result<_, rcgen::Error> {
            let key = KeyPair::generate()?;
            let certificate =
                CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &ca)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        Ok(Self { ca: ca.pem(), bootd: leaf(BOOTD)?, control: leaf("control.croft.internal")? })
    }

    /// Writes what bootd needs to `dir`; the table `[edge]` of its configuration file.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn give_bootd(&self, dir: &Path, listen: &str) -> io::Result<String> {
        std::fs::write(dir.join("ca.pem"), &self.ca)?;
        std::fs::write(dir.join("edge.pem"), &self.bootd.0)?;
        std::fs::write(dir.join("edge.key"), &self.bootd.1)?;
        let shown = dir.display();
        Ok(format!(
            "[edge]\nlisten = '{listen}'\nca = '{shown}/ca.pem'\n\
             certificate = '{shown}/edge.pem'\nkey = '{shown}/edge.key'\n"
        ))
    }

    /// Connects to bootd's door as control does, or as a stranger without a certificate.
    ///
    /// # Errors
    /// It does not answer, or lets nobody in.
    pub async fn connect(&self, door: &str, as_control: bool) -> Result<Channel, Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name(BOOTD);
        if as_control {
            tls = tls.identity(Identity::from_pem(&self.control.0, &self.control.1));
        }
        Endpoint::from_shared(format!("https://{door}"))?.tls_config(tls)?.connect().await
    }
}
