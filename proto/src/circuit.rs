//! Switch ports, as DHCP relays name them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The circuit-id of a relay's option 82 (RFC 3046 section 3.1), 1 to 253 bytes: written as text, or
/// as `0x` and hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CircuitId(Vec<u8>);

/// Not a circuit-id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCircuitId {
    /// Nothing, or more than the option holds.
    #[error("a circuit-id has 1 to 253 bytes")]
    Length,
    /// Something else than digits after `0x`.
    #[error("a circuit-id in hex is 0x and pairs of hex digits")]
    Hex,
}

impl CircuitId {
    /// Checks the bytes.
    ///
    /// # Errors
    /// There are none, or more than 253.
    pub fn new(bytes: &[u8]) -> Result<Self, InvalidCircuitId> {
        if (1..=253).contains(&bytes.len()) {
            return Ok(Self(bytes.to_vec()));
        }
        Err(InvalidCircuitId::Length)
    }

    /// The bytes of the option.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for CircuitId {
    type Err = InvalidCircuitId;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let Some(digits) = s.strip_prefix("0x") else { return Self::new(s.as_bytes()) };
        let byte = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).ok()?;
            let digits = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            u8::from_str_radix(text, 16).ok().filter(|_| digits)
        };
        let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
        Self::new(&bytes.ok_or(InvalidCircuitId::Hex)?)
    }
}

impl fmt::Display for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: &&str| {
            text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') && !text.starts_with("0x")
        };
        if let Some(text) = std::str::from_utf8(&self.0).ok().filter(plain) {
            return f.pad(text);
        }
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for CircuitId {
    type Error = InvalidCircuitId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CircuitId> for String {
    fn from(circuit: CircuitId) -> Self {
        circuit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_and_hex_are_read_and_nonsense_is_not() {
        let read = |text: &str| text.parse::<CircuitId>();
        assert_eq!(read("ge-0/0/7").expect("text").as_bytes(), b"ge-0/0/7");
        assert_eq!(read("0x00ff").expect("hex").as_bytes(), [0, 255]);
        assert_eq!(read("0x00ff").expect("hex").to_string(), "0x00ff");
        for bad in ["", "0x", &"x".repeat(254)] {
            assert_eq!(read(bad), Err(InvalidCircuitId::Length), "{bad}");
        }
        for bad in ["0x0", "0xzz", "0x+1", "0x0é"] {
            assert_eq!(read(bad), Err(InvalidCircuitId::Hex), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 1..254),
            text in "(0x)?[ -~]{1,20}",
        ) {
            for bytes in [&bytes[..], text.as_bytes()] {
                let circuit = CircuitId::new(bytes).expect("a length");
                prop_assert_eq!(circuit.to_string().parse(), Ok(circuit));
            }
        }
    }
}
