//! iSCSI qualified names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{MemberName, NodeName};

/// An iSCSI name in `iqn.` form (RFC 7143 section 4.2.7.3): up to 223 bytes, lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Iqn(String);

/// Not an iSCSI qualified name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("iSCSI name {0:?} is not valid: write iqn.YYYY-MM.reversed.domain[:suffix], lower case")]
pub struct InvalidIqn(String);

/// `.internal` is the domain that nobody else can own (ICANN, July 2024).
const AUTHORITY: &str = "iqn.2026-11.internal.croft";

impl Iqn {
    /// Name under which a node logs in.
    pub fn initiator(node: &NodeName) -> Self {
        Self(format!("{AUTHORITY}:node.{node}"))
    }

    /// Name of the target that shows a member its volumes.
    pub fn target(member: &MemberName) -> Self {
        Self(format!("{AUTHORITY}:member.{}.{}.{}", member.farm, member.tier, member.ordinal))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Iqn {
    type Err = InvalidIqn;

    fn from_str(s: &str) -> Result<Self, InvalidIqn> {
        let fault = || InvalidIqn(s.chars().take(80).collect());
        let rest = s.strip_prefix("iqn.").filter(|_| s.len() <= 223).ok_or_else(fault)?;
        let bytes = rest.as_bytes();
        let dated = bytes.len() > 8
            && bytes[..4].iter().all(u8::is_ascii_digit)
            && bytes[4] == b'-'
            && matches!(&bytes[5..7], [b'0', b'1'..=b'9'] | [b'1', b'0'..=b'2'])
            && bytes[7] == b'.';
        let legal = |b: &u8| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b':')
        };
        if dated && bytes.iter().all(legal) { Ok(Self(s.to_owned())) } else { Err(fault()) }
    }
}

impl TryFrom<String> for Iqn {
    type Error = InvalidIqn;
    fn try_from(s: String) -> Result<Self, InvalidIqn> {
        s.parse()
    }
}

impl From<Iqn> for String {
    fn from(iqn: Iqn) -> Self {
        iqn.0
    }
}

impl fmt::Display for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_we_make_are_names_we_accept() {
        let node = Iqn::initiator(&"n1".parse().expect("valid"));
        let target = Iqn::target(&"shop/web/2".parse().expect("valid"));
        assert_eq!(node.as_str().parse(), Ok(node.clone()));
        assert_eq!(target.as_str(), "iqn.2026-11.internal.croft:member.shop.web.2");
    }

    #[test]
    fn malformed_names_are_refused() {
        let long = format!("iqn.2026-11.a:{}", "x".repeat(300));
        for bad in ["", "iqn.", "eui.02004567A425678D", "iqn.2026-13.a:b", "iqn.2026-11.A", &long] {
            assert!(bad.parse::<Iqn>().is_err(), "{bad} was accepted");
        }
    }
}
