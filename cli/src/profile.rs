//! The operator's profile: where control is, whom to trust, and the token.
//!
//! ```toml
//! server = "https://10.255.0.1:7000"
//! ca = "/var/lib/croft/ca.pem"       # relative paths are relative to the profile
//! token = "…"
//! ```

use std::path::{Path, PathBuf};

use croft_proto::Secret;
use croft_proto::checked_toml::{Fault as LineFault, Faults, MAX_BYTES, read};

use crate::fault::Fault;

/// A profile that was read.
#[derive(Debug)]
pub struct Profile {
    /// The file.
    pub path: PathBuf,
    /// `https://…`.
    pub server: String,
    /// The certificate authority, PEM.
    pub ca: String,
    /// Sent with each call, never printed.
    pub token: Secret,
}

impl Profile {
    /// Reads the file, or the default one.
    ///
    /// # Errors
    /// There is none, it has faults, or its certificate authority cannot be read.
    pub fn load(path: Option<PathBuf>) -> Result<Self, Fault> {
        let path = path.or_else(default_path).ok_or(Fault::NoProfile)?;
        let text = read_text(&path)?;
        let parsed =
            parse(&text).map_err(|faults| Fault::Profile { path: path.clone(), faults })?;
        let ca = path.parent().unwrap_or(Path::new(".")).join(parsed.ca);
        let ca = read_text(&ca)?;
        Ok(Self { path, server: parsed.server, ca, token: parsed.token })
    }
}

/// The text of a file that is sent or read as a whole.
///
/// # Errors
/// It cannot be read, or is longer than any document may be.
pub fn read_text(path: &Path) -> Result<String, Fault> {
    let failed = |source| Fault::Read { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES as u64 {
        let message = format!("it has {length} bytes; {MAX_BYTES} are allowed");
        let line = LineFault { line: 1, key: String::new(), message };
        return Err(Fault::Profile { path: path.to_owned(), faults: Faults(vec![line]) });
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn default_path() -> Option<PathBuf> {
    let config = match std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            PathBuf::from(std::env::var_os("HOME").filter(|dir| !dir.is_empty())?).join(".config")
        }
    };
    Some(config.join("croft/operator.toml"))
}

struct Parsed {
    server: String,
    ca: PathBuf,
    token: Secret,
}

fn parse(text: &str) -> Result<Parsed, Faults> {
    read(text, |document| {
        let server: Option<String> = document.required("server");
        let ca: Option<PathBuf> = document.required("ca");
        let token: Option<String> = document.required("token");
        if server.as_ref().is_some_and(|server| !server.starts_with("https://")) {
            document.fault("server", "must start with https://: the token is sent there");
        }
        if token.as_ref().is_some_and(|t| t.is_empty() || !t.bytes().all(|b| b.is_ascii_graphic()))
        {
            document.fault("token", "must be printable characters without spaces");
        }
        Some(Parsed { server: server?, ca: ca?, token: Secret::new(token?) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_of_a_profile_are_found_and_none_shows_the_token() {
        let text = "server = 'http://x'\ntoken = 'se cret'\nserver_name = 'y'\n";
        let faults = parse(text).err().expect("faults").to_string();
        for expected in
            ["line 1: server: must start", "ca: is missing", "line 2: token", "server_name"]
        {
            assert!(faults.contains(expected), "{faults}");
        }
        assert!(!faults.contains("se cret"), "{faults}");
    }

    #[test]
    fn the_authority_is_beside_the_profile_unless_its_path_is_absolute() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("operator.toml");
        std::fs::write(&path, "server='https://x:1'\nca='ca.pem'\ntoken='t'").expect("written");
        let missing = Profile::load(Some(path.clone())).expect_err("no authority").to_string();
        assert!(missing.contains("ca.pem"), "{missing}");
        std::fs::write(dir.path().join("ca.pem"), "PEM").expect("written");
        let profile = Profile::load(Some(path)).expect("valid");
        assert_eq!(profile.ca, "PEM");
        assert!(!format!("{profile:?}").contains("\"t\""));
    }
}
