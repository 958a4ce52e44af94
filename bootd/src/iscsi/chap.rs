//! CHAP with MD5, one way: the initiator proves that it knows the secret (RFC 1994, RFC 7143
//! section 12.1.3).

use croft_proto::Secret;
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// Bytes of a challenge that we send.
pub(crate) const CHALLENGE: usize = 16;

/// An identifier and a challenge, used for one answer.
#[derive(Debug)]
pub(crate) struct Challenge {
    pub identifier: u8,
    pub bytes: [u8; CHALLENGE],
}

impl Challenge {
    /// A new one.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut identifier = [0];
        let mut bytes = [0; CHALLENGE];
        getrandom::fill(&mut identifier)?;
        getrandom::fill(&mut bytes)?;
        Ok(Self { identifier: identifier[0], bytes })
    }

    /// Whether the response proves the secret. Takes the same time for every response of 16 bytes.
    pub fn proves(&self, secret: &Secret, response: &[u8]) -> bool {
        self.expected(secret).ct_eq(response).into()
    }

    fn expected(&self, secret: &Secret) -> [u8; 16] {
        let mut hash = Md5::new();
        hash.update([self.identifier]);
        hash.update(secret.expose());
        hash.update(self.bytes);
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_secret_proves() {
        let secret = Secret::new("sixteen bytes ok".to_owned());
        let challenge = Challenge { identifier: 9, bytes: *b"0123456789abcdef" };
        let right = challenge.expected(&secret);
        assert!(challenge.proves(&secret, &right));
        assert!(!challenge.proves(&Secret::new("other".to_owned()), &right));
        assert!(!challenge.proves(&secret, &right[..15]));
        assert!(!challenge.proves(&secret, &[]));
    }
}
