//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A unicast 48-bit Ethernet address, written `52:54:00:0a:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// Not the address of one network interface.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MAC address {0:?} is not valid: write six hex bytes with colons, of a single interface")]
pub struct InvalidMac(String);

impl MacAddr {
    /// Checks that the address is unicast and not zero.
    pub fn new(octets: [u8; 6]) -> Result<Self, InvalidMac> {
        if octets[0] & 1 != 0 || octets == [0; 6] {
            return Err(InvalidMac(Self(octets).to_string()));
        }
        Ok(Self(octets))
    }

    /// The six bytes in transmission order.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = InvalidMac;

    fn from_str(s: &str) -> Result<Self, InvalidMac> {
        let fault = || InvalidMac(s.chars().take(40).collect());
        let mut octets = [0; 6];
        let mut parts = s.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(fault)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| fault())?;
        }
        if parts.next().is_some() {
            return Err(fault());
        }
        Self::new(octets)
    }
}

impl TryFrom<String> for MacAddr {
    type Error = InvalidMac;
    fn try_from(s: String) -> Result<Self, InvalidMac> {
        s.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_addresses_in_colon_form_parse() {
        let mac: MacAddr = "52:54:00:0A:00:01".parse().expect("valid");
        assert_eq!(mac.to_string(), "52:54:00:0a:00:01");
        for bad in [
            "ff:ff:ff:ff:ff:ff",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "52:54:00:0a:00",
            "52:54:00:0a:00:01:02",
            "52-54-00-0a-00-01",
            "52:54:00:a:00:01",
            "+1:54:00:0a:00:01",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad} was accepted");
        }
    }
}
