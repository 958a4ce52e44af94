//! Power of nodes, through their BMCs.

mod redfish;

pub use redfish::{PowerError, Redfish};

/// What a BMC says of its node's power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// On.
    On,
    /// Off.
    Off,
    /// On its way, or a word that Redfish may add one day: neither on nor off.
    Between,
}

/// What the node's power should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedPower {
    /// On.
    On,
    /// Off, at once.
    Off,
}

/// The Redfish reset that leads from one to the other (DSP0266, `Resource.ResetType`).
pub fn plan(seen: PowerState, wanted: WantedPower) -> Option<&'static str> {
    match (seen, wanted) {
        (PowerState::Off, WantedPower::On) => Some("On"),
        (PowerState::On | PowerState::Between, WantedPower::Off) => Some("ForceOff"),
        (PowerState::On | PowerState::Between, WantedPower::On)
        | (PowerState::Off, WantedPower::Off) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_reset_that_is_as_wanted() {
        assert_eq!(plan(PowerState::Off, WantedPower::On), Some("On"));
        assert_eq!(plan(PowerState::On, WantedPower::On), None);
        assert_eq!(plan(PowerState::On, WantedPower::Off), Some("ForceOff"));
        assert_eq!(plan(PowerState::Between, WantedPower::Off), Some("ForceOff"));
        assert_eq!(plan(PowerState::Off, WantedPower::Off), None);
    }
}
