//! `croft-control init`: the grid's certificate authority, the certificates below it, the store
//! and the first operator's token.
//!
//! ```text
//! ca.pem, ca.key                      the authority
//! control.pem, control.key            control, towards boot servers (client)
//! api.pem, api.key                    control, towards operators (server control.croft.internal)
//! NAME/ca.pem, NAME/edge.pem, .key    a boot server (server NAME.croft.internal)
//! control.db                          the store
//! operator.toml                       the first operator's profile, with the token
//! ```

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use croft_proto::{BootdName, OrganizationName, Secret};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

use crate::api::{TokenError, issue};
use crate::model::Role;
use crate::store::{SqliteStore, StoreError};

/// Name in the API's certificate; clients verify it whatever address they dial.
pub const API_SERVER_NAME: &str = "control.croft.internal";

/// Days that certificates are valid.
const VALID_DAYS: i64 = 3650;

/// Why the directory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is something already.
    #[error("{path}: exists already; `init` overwrites nothing: choose another directory")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file or directory cannot be written.
    #[error("{path}: cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("certificate of {subject}: cannot be made")]
    Certificate {
        /// Its subject.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The store cannot be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The token cannot be made.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The profile cannot be written as TOML.
    #[error("{path}: cannot be encoded")]
    Profile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: toml::ser::Error,
    },
}

/// Writes a new file that only its owner can read.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), InitError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => InitError::Exists { path: path.to_owned() },
        _ => InitError::Write { path: path.to_owned(), source },
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}

fn make_dir(path: &Path) -> Result<(), InitError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| InitError::Write { path: path.to_owned(), source })
}

struct Authority {
    pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn validity(params: &mut CertificateParams) {
    // Clocks of fresh machines are off by hours.
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(VALID_DAYS);
}

fn authority() -> Result<Authority, InitError> {
    let subject = "Croft grid CA";
    let failed = |source| InitError::Certificate { subject: subject.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params);
    let certificate = params.self_signed(&key).map_err(failed)?;
    let (pem, key_pem) = (certificate.pem(), key.serialize_pem());
    Ok(Authority { pem, key_pem, issuer: Issuer::new(params, key) })
}

impl Authority {
    /// A certificate for a name, and its key.
    fn leaf(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(String, String), InitError> {
        let failed = |source| InitError::Certificate { subject: name.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

/// An operator's or tenant's profile, as the command line reads it.
#[derive(serde::Serialize)]
struct Profile<'a> {
    server: String,
    ca: &'a Path,
    token: &'a str,
}

/// Writes a profile with a token.
///
/// # Errors
/// The file exists or cannot be written.
pub fn write_profile(
    path: &Path,
    api_address: SocketAddr,
    ca: &Path,
    token: &Secret,
) -> Result<(), InitError> {
    let profile = Profile { server: format!("https://{api_address}"), ca, token: token.expose() };
    let text = toml::to_string(&profile)
        .map_err(|source| InitError::Profile { path: path.to_owned(), source })?;
    write_new(path, text.as_bytes())
}

/// Makes everything that control needs, in a directory that has none of it.
///
/// # Errors
/// See [`InitError`].
pub async fn init(dir: &Path, bootd: &BootdName, api_address: SocketAddr) -> Result<(), InitError> {
    make_dir(dir)?;
    let dir = &fs::canonicalize(dir)
        .map_err(|source| InitError::Write { path: dir.to_owned(), source })?;
    let at = |name: &str| dir.join(name);
    let bootd_dir = at(bootd.as_str());
    // Found out before anything is written.
    for path in [at("ca.pem"), at("control.db"), at("operator.toml"), bootd_dir.join("edge.pem")] {
        if path.exists() {
            return Err(InitError::Exists { path });
        }
    }
    make_dir(&bootd_dir)?;
    let ca = authority()?;
    let control = ca.leaf("control.croft.internal", ExtendedKeyUsagePurpose::ClientAuth)?;
    let api = ca.leaf(API_SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth)?;
    let edge = format!("{bootd}.croft.internal");
    let edge = ca.leaf(&edge, ExtendedKeyUsagePurpose::ServerAuth)?;
    write_new(&at("ca.key"), ca.key_pem.as_bytes())?;
    write_new(&at("ca.pem"), ca.pem.as_bytes())?;
    for (name, (certificate, key)) in [("control", control), ("api", api)] {
        write_new(&at(&format!("{name}.pem")), certificate.as_bytes())?;
        write_new(&at(&format!("{name}.key")), key.as_bytes())?;
    }
    write_new(&bootd_dir.join("ca.pem"), ca.pem.as_bytes())?;
    write_new(&bootd_dir.join("edge.pem"), edge.0.as_bytes())?;
    write_new(&bootd_dir.join("edge.key"), edge.1.as_bytes())?;
    // SQLite keeps the mode for the files that it adds.
    write_new(&at("control.db"), b"")?;
    let store = SqliteStore::open(&at("control.db"))?;
    // The name is a valid one.
    if let Ok(organization) = "operators".parse::<OrganizationName>() {
        let token = issue(&store, organization, Role::Operator).await?;
        write_profile(&at("operator.toml"), api_address, &at("ca.pem"), &token)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn init_makes_private_files_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("control");
        let bootd: BootdName = "bootd0".parse().expect("valid");
        let address = "10.255.0.1:7000".parse().expect("valid");
        init(&dir, &bootd, address).await.expect("made");
        for name in [
            "ca.pem",
            "ca.key",
            "control.pem",
            "control.key",
            "api.pem",
            "api.key",
            "control.db",
            "operator.toml",
            "bootd0/ca.pem",
            "bootd0/edge.pem",
            "bootd0/edge.key",
        ] {
            let mode = fs::metadata(dir.join(name)).expect(name).permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let profile = fs::read_to_string(dir.join("operator.toml")).expect("profile");
        assert!(profile.contains("server = \"https://10.255.0.1:7000\""), "{profile}");
        let again = init(&dir, &bootd, address).await.expect_err("overwrote");
        assert!(matches!(again, InitError::Exists { .. }));
        assert_eq!(fs::read_to_string(dir.join("operator.toml")).expect("profile"), profile);
    }
}
