//! The order of an object's versions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// (epoch, counter), compared in that order. The epoch rises when a backup is restored or a
/// leader elected, the counter at each change; whoever receives an older generation refuses it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation {
    /// Whose counter it is.
    pub epoch: u64,
    /// Changes within the epoch.
    pub counter: u64,
}

impl Generation {
    /// The generation after this one, in the same epoch.
    pub fn next(self) -> Self {
        Self { epoch: self.epoch, counter: self.counter + 1 }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.counter)
    }
}

impl From<Generation> for crate::common::Generation {
    fn from(g: Generation) -> Self {
        Self { epoch: g.epoch, counter: g.counter }
    }
}

impl From<crate::common::Generation> for Generation {
    fn from(g: crate::common::Generation) -> Self {
        Self { epoch: g.epoch, counter: g.counter }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_epoch_is_newer_than_any_counter_of_the_old_one() {
        let old = Generation { epoch: 1, counter: 900 };
        let new = Generation { epoch: 2, counter: 0 };
        assert!(new > old && old.next() > old && new > old.next());
    }
}
