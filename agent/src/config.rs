//! What the node's own initrd says, and the credentials of this boot.

use std::path::{Path, PathBuf};

use croft_proto::agent::hello::Credential;
use croft_proto::{AgentConfig, Secret};

use crate::files::{self, FileError};

/// Longest `agent.json` and session key that are read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Longest session key that bootd may give, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// Why the agent cannot start, or cannot keep what it was given.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no `agent.json`.
    #[error("{0} is missing: this node was not booted by bootd, or its initramfs did not keep it")]
    Missing(PathBuf),
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// `agent.json` is not what bootd writes.
    #[error("{path} is not an agent configuration of this version")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The fault and its place.
        #[source]
        source: serde_json::Error,
    },
    /// bootd gave a key that could not be kept.
    #[error(
        "bootd gave a session key that is empty, longer than {MAX_KEY_BYTES} bytes or not text"
    )]
    BadKey,
}

/// Reads `agent.json`.
///
/// # Errors
/// It is missing, unreadable, or not an agent configuration.
pub fn load(path: &Path) -> Result<AgentConfig, ConfigError> {
    let text =
        files::read(path, MAX_FILE_BYTES)?.ok_or_else(|| ConfigError::Missing(path.to_owned()))?;
    serde_json::from_str(&text)
        .map_err(|source| ConfigError::Invalid { path: path.to_owned(), source })
}

/// What this node attaches with: the boot token once, the session key from then on.
#[derive(Debug)]
pub(crate) struct Credentials {
    config_path: PathBuf,
    key_path: PathBuf,
    config: AgentConfig,
    key: Option<Secret>,
    /// The key was refused, and the token is worth a try if there still is one.
    try_token: bool,
}

impl Credentials {
    /// The credentials of this boot as the files hold them.
    pub fn load(
        config: AgentConfig,
        config_path: &Path,
        key_path: &Path,
    ) -> Result<Self, ConfigError> {
        let key = files::read(key_path, MAX_FILE_BYTES)?
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty())
            .map(Secret::new);
        Ok(Self {
            config_path: config_path.to_owned(),
            key_path: key_path.to_owned(),
            config,
            key,
            try_token: false,
        })
    }

    /// What to say Hello with; nothing if this boot has neither a key nor a token.
    pub fn hello(&self) -> Option<Credential> {
        let token = Some(&self.config.boot_token).filter(|token| !token.expose().is_empty());
        match (&self.key, token) {
            (Some(key), None) => Some(Credential::SessionKey(key.expose().to_owned())),
            (Some(key), Some(_)) if !self.try_token => {
                Some(Credential::SessionKey(key.expose().to_owned()))
            }
            (_, Some(token)) => Some(Credential::BootToken(token.expose().to_owned())),
            (None, None) => None,
        }
    }

    /// bootd refused what [`Self::hello`] gave.
    pub fn refused(&mut self) {
        self.try_token = !self.try_token;
    }

    /// bootd accepted it and gave this key. The token is spent: it is forgotten here and in
    /// `agent.json`, *after* the key is safe, so that a crash in between leaves one that works.
    pub fn granted(&mut self, key: &str) -> Result<(), ConfigError> {
        self.try_token = false;
        if self.key.as_ref().is_none_or(|held| held.expose() != key) {
            let text = key.bytes().all(|b| b.is_ascii_graphic());
            if key.is_empty() || key.len() > MAX_KEY_BYTES || !text {
                return Err(ConfigError::BadKey);
            }
            files::replace(&self.key_path, key.as_bytes(), 0o600)?;
            self.key = Some(Secret::new(key.to_owned()));
        }
        if !self.config.boot_token.expose().is_empty() {
            let spent =
                AgentConfig { boot_token: Secret::new(String::new()), ..self.config.clone() };
            let text = serde_json::to_vec(&spent).map_err(|source| ConfigError::Invalid {
                path: self.config_path.clone(),
                source,
            })?;
            files::replace(&self.config_path, &text, 0o600)?;
            self.config = spent;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            node: "n1".parse().expect("valid"),
            collector: "10.20.1.1:7100".parse().expect("valid"),
            certificate: "PEM".to_owned(),
            boot_token: Secret::new("once".to_owned()),
            boot_nic: "52:54:00:00:00:01".parse().expect("valid"),
        }
    }

    #[test]
    fn the_token_is_gone_from_memory_and_file_once_a_key_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let (json, key) = (dir.path().join("agent.json"), dir.path().join("session.key"));
        files::replace(&json, &serde_json::to_vec(&config()).expect("json"), 0o600).expect("kept");
        let mut held = Credentials::load(load(&json).expect("valid"), &json, &key).expect("read");
        assert_eq!(held.hello(), Some(Credential::BootToken("once".to_owned())));
        assert!(matches!(held.granted(""), Err(ConfigError::BadKey)));
        assert!(matches!(held.granted("a\nb"), Err(ConfigError::BadKey)));
        held.granted("key").expect("kept");
        assert_eq!(held.hello(), Some(Credential::SessionKey("key".to_owned())));
        assert!(!std::fs::read_to_string(&json).expect("there").contains("once"));
        let again = Credentials::load(load(&json).expect("valid"), &json, &key).expect("read");
        assert_eq!(again.hello(), Some(Credential::SessionKey("key".to_owned())));
        held.refused();
        assert_eq!(held.hello(), Some(Credential::SessionKey("key".to_owned())));
    }

    #[test]
    fn a_crash_between_keeping_the_key_and_dropping_the_token_leaves_both_to_try() {
        let dir = tempfile::tempdir().expect("a directory");
        let (json, key) = (dir.path().join("agent.json"), dir.path().join("session.key"));
        files::replace(&key, b"key\n", 0o600).expect("kept");
        let mut held = Credentials::load(config(), &json, &key).expect("read");
        assert_eq!(held.hello(), Some(Credential::SessionKey("key".to_owned())));
        held.refused();
        assert_eq!(held.hello(), Some(Credential::BootToken("once".to_owned())));
        held.refused();
        assert_eq!(held.hello(), Some(Credential::SessionKey("key".to_owned())));
    }

    #[test]
    fn what_is_not_a_configuration_is_refused_with_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.json");
        assert!(load(&path).expect_err("missing").to_string().contains("agent.json is missing"));
        std::fs::write(&path, "{\"node\": \"../x\"}").expect("written");
        assert!(matches!(load(&path), Err(ConfigError::Invalid { .. })));
    }
}
