//! VLAN identifiers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A VLAN identifier that a port can carry: 1..=4094 (IEEE 802.1Q section 9.6; 0 means
/// "priority only" and 4095 is reserved).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VlanId(u16);

/// Outside 1..=4094.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("VLAN {0} does not exist: use 1 to 4094")]
pub struct InvalidVlan(u32);

impl VlanId {
    /// The identifier as a number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for VlanId {
    type Error = InvalidVlan;
    fn try_from(id: u32) -> Result<Self, InvalidVlan> {
        match u16::try_from(id) {
            Ok(small @ 1..=4094) => Ok(Self(small)),
            _ => Err(InvalidVlan(id)),
        }
    }
}

impl From<VlanId> for u32 {
    fn from(vlan: VlanId) -> Self {
        vlan.0.into()
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserved_identifiers_are_refused() {
        for bad in [0, 4095, 4096, u32::MAX] {
            assert_eq!(VlanId::try_from(bad), Err(InvalidVlan(bad)));
        }
        assert_eq!(VlanId::try_from(4094).map(VlanId::get), Ok(4094));
    }
}
