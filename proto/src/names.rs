//! Names of Croft's objects: one type each, so that a farm's name cannot be passed for a tier's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that does not follow the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {given:?} is not valid: use 1 to {max} lower-case letters, digits and dashes, \
     starting with a letter and not ending with a dash"
)]
pub struct InvalidName {
    what: &'static str,
    given: String,
    max: usize,
}

/// Lower-case letters, digits and inner dashes, starting with a letter: a DNS label
/// (RFC 1123 section 2.1) that also serves as a path component and as part of an IQN.
fn check(what: &'static str, max: usize, given: &str) -> Result<(), InvalidName> {
    let bytes = given.as_bytes();
    let valid = (1..=max).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if valid {
        Ok(())
    } else {
        // What arrives may be hostile and long; the message stays short.
        let given = given.chars().take(80).collect();
        Err(InvalidName { what, given, max })
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $what:literal, $max:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(s: &str) -> Result<Self, InvalidName> {
                check($what, $max, s)?;
                Ok(Self(s.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(s: String) -> Result<Self, InvalidName> {
                check($what, $max, &s)?;
                Ok(Self(s))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}

names! {
    /// A diskless machine.
    NodeName = "node", 32;
    /// A virtual server farm.
    FarmName = "farm", 24;
    /// A tier of a farm.
    TierName = "tier", 24;
    /// What a node does: `web-server`, `load-balancer`…
    RoleName = "role", 32;
    /// Who owns a farm.
    OrganizationName = "organization", 32;
    /// A VLAN with its subnet.
    SegmentName = "segment", 32;
    /// Role → boot target.
    BlueprintName = "blueprint", 32;
    /// An image's name; its version is a hash.
    ImageName = "image", 48;
    /// A switch of the grid.
    SwitchName = "switch", 32;
    /// A hardware class: nodes of one class are interchangeable.
    ClassName = "class", 32;
    /// A boot server of the grid.
    BootdName = "bootd", 32;
    /// A volume of bootd's store: part of a file name, too.
    VolumeId = "volume", 160;
    /// A data volume among those of a member, or of a farm.
    DataName = "data volume", 24;
}

/// A place in a tier, written `FARM/TIER/ORDINAL`, for example `shop/web/2`. Ordinals start at 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberName {
    /// The farm.
    pub farm: FarmName,
    /// The tier within it.
    pub tier: TierName,
    /// The place within that, 1..=9999.
    pub ordinal: u32,
}

impl MemberName {
    /// Highest ordinal that a member can have.
    pub const MAX_ORDINAL: u32 = 9999;

    /// The host name that the member's node gets: `shop-web-2`. No other member of the farm has it,
    /// and a farm's segment holds no others; two farms whose names hold dashes may have the same
    /// one (`shop-eu/web/1` and `shop/eu-web/1`), so it identifies nobody across farms.
    pub fn host_name(&self) -> String {
        format!("{}-{}-{}", self.farm, self.tier, self.ordinal)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}/{}", self.farm, self.tier, self.ordinal))
    }
}

impl FromStr for MemberName {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Self, InvalidName> {
        let fault = || InvalidName {
            what: "member (FARM/TIER/ORDINAL)",
            given: s.chars().take(80).collect(),
            max: 24,
        };
        let mut parts = s.splitn(3, '/');
        let (Some(farm), Some(tier), Some(ordinal)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(fault());
        };
        let ordinal: u32 = ordinal.parse().map_err(|_| fault())?;
        if !(1..=Self::MAX_ORDINAL).contains(&ordinal) {
            return Err(fault());
        }
        Ok(Self { farm: farm.parse()?, tier: tier.parse()?, ordinal })
    }
}

impl TryFrom<String> for MemberName {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        s.parse()
    }
}

impl From<MemberName> for String {
    fn from(name: MemberName) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_a_path_or_an_iqn_are_refused() {
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a.b", "1a", "a b", "ä", &"a".repeat(33)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "n1", "web-server", &"a".repeat(32)] {
            assert_eq!(good.parse::<NodeName>().map(String::from).as_deref(), Ok(good));
        }
    }

    #[test]
    fn deserialising_checks_like_parsing() {
        assert!(serde_json::from_str::<FarmName>("\"../x\"").is_err());
        assert!(serde_json::from_str::<MemberName>("\"shop/web/0\"").is_err());
    }

    #[test]
    fn member_names_read_back_as_written() {
        let name: MemberName = "shop/web/2".parse().expect("valid");
        assert_eq!(name.to_string(), "shop/web/2");
        assert_eq!(name.host_name(), "shop-web-2");
        for bad in ["shop/web", "shop/web/", "shop/web/x", "shop/web/10000", "shop/web/1/2"] {
            assert!(bad.parse::<MemberName>().is_err(), "{bad:?} was accepted");
        }
    }
}
