//! Values that must not be printed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A secret as printable text. `Debug` hides it and there is no `Display`, so that it reaches a
/// log only where somebody wrote [`Secret::expose`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret that came from elsewhere.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// A new secret of `bytes` random bytes, written as two hex digits each. CHAP wants more than
    /// 96 bits (RFC 7143 section 9.2.1): use at least 16 bytes.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn random(bytes: usize) -> Result<Self, getrandom::Error> {
        let mut raw = vec![0; bytes];
        getrandom::fill(&mut raw)?;
        Ok(Self(raw.iter().map(|b| format!("{b:02x}")).collect()))
    }

    /// The secret itself: for the wire and for files of mode 0600, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_it() {
        let secret = Secret::random(16).expect("randomness");
        assert_eq!(secret.expose().len(), 32);
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        assert_ne!(secret, Secret::random(16).expect("randomness"));
    }
}
