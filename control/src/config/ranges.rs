//! Values of two parts: `100-103`, `203.0.113.10-203.0.113.99`; and text with few characters.

use std::net::Ipv4Addr;
use std::str::FromStr;

use croft_proto::VlanId;
use ipnet::Ipv4Net;

/// `FIRST-LAST`, or one VLAN.
#[derive(Debug, Clone, Copy)]
pub struct VlanRange {
    pub first: VlanId,
    pub last: VlanId,
}

impl VlanRange {
    /// How many VLANs it has.
    pub fn count(self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1
    }

    /// Whether it has this one.
    pub fn contains(self, vlan: VlanId) -> bool {
        (self.first..=self.last).contains(&vlan)
    }
}

impl FromStr for VlanRange {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        let vlan = |part: &str| {
            let id: u32 = part.trim().parse().map_err(|_| {
                format!("{s:?} is not a range of VLANs; write FIRST-LAST, for example 100-199")
            })?;
            VlanId::try_from(id).map_err(|e| e.to_string())
        };
        let range = Self { first: vlan(first)?, last: vlan(last)? };
        if range.first > range.last {
            return Err(format!("{s:?} ends before it begins"));
        }
        Ok(range)
    }
}

/// `FIRST-LAST`.
#[derive(Debug, Clone, Copy)]
pub struct AddressRange {
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (first, last) = s.split_once('-').unwrap_or((s, s));
        let address = |part: &str| {
            part.trim().parse::<Ipv4Addr>().map_err(|_| {
                format!("{s:?} is not a range of addresses; write FIRST-LAST, both in full")
            })
        };
        let range = Self { first: address(first)?, last: address(last)? };
        if range.first > range.last {
            return Err(format!("{s:?} ends before it begins"));
        }
        Ok(range)
    }
}

/// A subnet written by its network address.
#[derive(Debug, Clone, Copy)]
pub struct Subnet(pub Ipv4Net);

impl FromStr for Subnet {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let net: Ipv4Net = s.parse().map_err(|_| {
            format!("{s:?} is not a subnet; write ADDRESS/PREFIX, for example 10.10.0.0/24")
        })?;
        if net.network() != net.addr() {
            return Err(format!("{s:?} has host bits; the subnet is {}", net.trunc()));
        }
        if !(8..=29).contains(&net.prefix_len()) {
            return Err(format!("{s:?} must have a prefix of 8 to 29"));
        }
        Ok(Self(net))
    }
}

/// A word of printable ASCII without spaces, quotes and backslashes, at most `MAX` bytes.
#[derive(Debug, Clone)]
pub struct Word<const MAX: usize>(pub String);

impl<const MAX: usize> FromStr for Word<MAX> {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let legal = |b: u8| b.is_ascii_graphic() && !b"\"'\\".contains(&b);
        if (1..=MAX).contains(&s.len()) && s.bytes().all(legal) {
            Ok(Self(s.to_owned()))
        } else {
            Err(format!("must be 1 to {MAX} printable ASCII characters without spaces and quotes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_must_be_ranges() {
        let range: VlanRange = "100-103".parse().expect("valid");
        assert_eq!(range.count(), 4);
        for bad in ["", "x", "5-4", "0-3", "1-4095", "1-2-3", "-"] {
            assert!(bad.parse::<VlanRange>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["", "10.0.0.9-10.0.0.1", "10.0.0.1-20", "10.0.0.256-10.0.1.1"] {
            assert!(bad.parse::<AddressRange>().is_err(), "{bad:?} was accepted");
        }
        for bad in ["10.0.0.1/24", "10.0.0.0", "10.0.0.0/31", "0.0.0.0/0"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad:?} was accepted");
        }
    }
}
