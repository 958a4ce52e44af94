//! Whose operations count against which limits.

use std::collections::BTreeMap;
use std::sync::Arc;

use croft_proto::{FarmName, VolumeId};

use crate::volume::throttle::{Rate, Throttle};

/// The limits of farms and volumes.
#[derive(Debug, Default)]
pub(super) struct Throttles {
    farms: BTreeMap<FarmName, Arc<Throttle>>,
    pub volumes: BTreeMap<VolumeId, (Arc<Throttle>, Option<FarmName>)>,
    rates: BTreeMap<VolumeId, Rate>,
}

impl Throttles {
    /// The throttle of a volume.
    pub fn of(&mut self, id: &VolumeId, farm: Option<&FarmName>) -> Arc<Throttle> {
        let above = farm.map(|farm| Arc::clone(self.farms.entry(farm.clone()).or_default()));
        let (throttle, _) =
            self.volumes.entry(id.clone()).or_insert_with(|| (Arc::default(), farm.cloned()));
        throttle.set(self.rates.get(id).copied().unwrap_or_default(), above);
        Arc::clone(throttle)
    }

    /// Replaces all limits; who is not named has none.
    pub fn set(&mut self, farms: &BTreeMap<FarmName, Rate>, volumes: BTreeMap<VolumeId, Rate>) {
        for name in farms.keys() {
            self.farms.entry(name.clone()).or_default();
        }
        for (name, throttle) in &self.farms {
            throttle.set(farms.get(name).copied().unwrap_or_default(), None);
        }
        self.rates = volumes;
        let known: Vec<_> =
            self.volumes.iter().map(|(id, (_, farm))| (id.clone(), farm.clone())).collect();
        for (id, farm) in known {
            self.of(&id, farm.as_ref());
        }
    }
}
