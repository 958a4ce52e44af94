//! CHAP: each side proves that it knows a secret without sending it (RFC 1994, RFC 7143 section
//! 12.1.3). MD5 because firmware knows nothing else; SHA-1 and SHA-256 where the initiator offers
//! them.

use croft_proto::Secret;
use md5::{Digest, Md5};
use ring::digest;
use subtle::ConstantTimeEq;

/// Bytes of a challenge that we send.
pub(crate) const CHALLENGE: usize = 32;
/// Longest challenge that is answered: bytes (RFC 7143 section 12.1.3).
pub(crate) const MAX_CHALLENGE: usize = 1024;
/// Longest response: bytes.
pub(crate) const MAX_RESPONSE: usize = 32;

/// A hash, by its number in the PPP registry, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
}

impl Algorithm {
    /// The strongest of a list of numbers that we know.
    pub fn choose(offered: &str) -> Option<Self> {
        let known = |number: &str| match number.trim() {
            "5" => Some(Self::Md5),
            "6" => Some(Self::Sha1),
            "7" => Some(Self::Sha256),
            _ => None,
        };
        offered.split(',').filter_map(known).max()
    }

    /// The response to a challenge.
    pub fn respond(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        let parts = [&[identifier], secret.expose().as_bytes(), challenge];
        match self {
            Self::Md5 => parts.iter().fold(Md5::new(), Digest::chain_update).finalize().to_vec(),
            Self::Sha1 => hash(&digest::SHA1_FOR_LEGACY_USE_ONLY, parts),
            Self::Sha256 => hash(&digest::SHA256, parts),
        }
    }
}

fn hash(algorithm: &'static digest::Algorithm, parts: [&[u8]; 3]) -> Vec<u8> {
    let mut context = digest::Context::new(algorithm);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}

/// An identifier and a challenge, used for one answer.
#[derive(Debug)]
pub(crate) struct Challenge {
    pub algorithm: Algorithm,
    pub identifier: u8,
    pub bytes: [u8; CHALLENGE],
}

impl Challenge {
    /// A new one.
    ///
    /// # Errors
    /// The operating system gave no randomness.
    pub fn new(algorithm: Algorithm) -> Result<Self, getrandom::Error> {
        let mut identifier = [0];
        let mut bytes = [0; CHALLENGE];
        getrandom::fill(&mut identifier)?;
        getrandom::fill(&mut bytes)?;
        Ok(Self { algorithm, identifier: identifier[0], bytes })
    }

    /// Whether the response proves the secret. Takes the same time for every response of the right
    /// length.
    pub fn proves(&self, secret: &Secret, response: &[u8]) -> bool {
        let expected = self.algorithm.respond(self.identifier, secret, &self.bytes);
        expected.ct_eq(response).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Algorithm; 3] = [Algorithm::Md5, Algorithm::Sha1, Algorithm::Sha256];

    #[test]
    fn only_the_right_secret_proves() {
        let secret = Secret::new("sixteen bytes ok".to_owned());
        for algorithm in ALL {
            let challenge = Challenge { algorithm, identifier: 9, bytes: [7; CHALLENGE] };
            let right = algorithm.respond(9, &secret, &[7; CHALLENGE]);
            assert!(right.len() <= MAX_RESPONSE);
            assert!(challenge.proves(&secret, &right));
            assert!(!challenge.proves(&Secret::new("other".to_owned()), &right));
            assert!(!challenge.proves(&secret, &right[1..]));
            assert!(!challenge.proves(&secret, &[]));
            let other = algorithm.respond(8, &secret, &[7; CHALLENGE]);
            assert!(!challenge.proves(&secret, &other));
        }
    }

    #[test]
    fn responses_are_hashes_of_identifier_secret_and_challenge() {
        // The hashes of "abc", as RFC 1321, RFC 3174 and FIPS 180-2 give them.
        let secret = Secret::new("b".to_owned());
        let hex = |algorithm: Algorithm| {
            let bytes = algorithm.respond(b'a', &secret, b"c");
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(hex(Algorithm::Md5), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(Algorithm::Sha1), "a9993e364706816aba3e25717850c26c9cd0d89d");
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(Algorithm::Sha256), sha256);
    }

    #[test]
    fn the_strongest_that_is_offered_is_chosen() {
        assert_eq!(Algorithm::choose("5"), Some(Algorithm::Md5));
        assert_eq!(Algorithm::choose("5,6,7"), Some(Algorithm::Sha256));
        assert_eq!(Algorithm::choose("8,6,5"), Some(Algorithm::Sha1));
        assert_eq!(Algorithm::choose("8"), None);
        assert_eq!(Algorithm::choose(""), None);
    }
}
