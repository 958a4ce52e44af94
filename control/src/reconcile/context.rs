//! What every reconciler has at hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use croft_proto::{NodeName, SwitchName};
use futures::future::join_all;
use tracing::warn;

use crate::drivers::bootserver::Credentials;
use crate::drivers::power::{PowerError, PowerState, Redfish, WantedPower};
use crate::drivers::switch::{Ovsdb, SwitchError, WantedPort};
use crate::model::{Farm, Grid, Member, NewEvent, NodeSpec, Switch};
use crate::sight::Sight;
use crate::world::{Ledger, LedgerError};

/// How often things are looked at.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Between two passes of the reconciler without a nudge.
    pub tick: Duration,
    /// Between two looks at the boot server's status.
    pub status: Duration,
    /// Between two load frames.
    pub frames: Duration,
    /// Between two looks at the power of a node in service.
    pub power: Duration,
    /// Between two looks at the ports and the power of a node at rest, and at the ports of one
    /// in service.
    pub audit: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(500),
            status: Duration::from_millis(500),
            frames: Duration::from_secs(1),
            power: Duration::from_secs(2),
            audit: Duration::from_secs(10),
        }
    }
}

/// Why a step could not be done now; it is tried again at the next pass.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The store failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The BMC failed.
    #[error(transparent)]
    Power(#[from] PowerError),
    /// The switch failed.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The model contradicts itself.
    #[error(transparent)]
    Transition(#[from] crate::model::IllegalTransition),
}

/// Where a node's ports belong.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// NIC 0 in the idle segment, NIC 1 nowhere.
    Idle,
    /// NIC 0 in the farm's segment, NIC 1 outside if the member is exposed, else nowhere.
    Farm(&'a Farm, &'a Member),
    /// Nowhere.
    Nowhere,
}

/// Store, sight and drivers.
#[derive(Debug)]
pub struct Context {
    /// The only writer of the store.
    pub ledger: Ledger,
    /// What is seen.
    pub sight: Arc<Sight>,
    /// BMCs.
    pub redfish: Redfish,
    /// Switches.
    pub ovsdb: Ovsdb,
    /// Control's identity towards boot servers.
    pub credentials: Credentials,
    /// How often.
    pub intervals: Intervals,
    /// What was last looked at when, and what was last complained about.
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    looked: HashMap<(NodeName, &'static str), Instant>,
    said: HashMap<String, String>,
}

impl Context {
    /// Everything but memory.
    pub fn new(
        ledger: Ledger,
        sight: Arc<Sight>,
        redfish: Redfish,
        credentials: Credentials,
        intervals: Intervals,
    ) -> Self {
        let (ovsdb, memory) = (Ovsdb::default(), Mutex::default());
        Self { ledger, sight, redfish, ovsdb, credentials, intervals, memory }
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to look at something of a node again; if so, it counts as looked at.
    pub fn is_due(&self, node: &NodeName, what: &'static str, interval: Duration) -> bool {
        let mut memory = self.memory();
        let key = (node.clone(), what);
        let due = memory.looked.get(&key).is_none_or(|at| at.elapsed() >= interval);
        if due {
            memory.looked.insert(key, Instant::now());
        }
        due
    }

    /// How long something has been so; counted from the first call after the last
    /// [`Context::forget`].
    pub fn lasting(&self, node: &NodeName, what: &'static str) -> Duration {
        let mut memory = self.memory();
        memory.looked.entry((node.clone(), what)).or_insert_with(Instant::now).elapsed()
    }

    /// Ends what [`Context::lasting`] counts.
    pub fn forget(&self, node: &NodeName, what: &'static str) {
        self.memory().looked.remove(&(node.clone(), what));
    }

    /// Stores an event once per topic and text; again only when the text changes or the topic was
    /// settled in between.
    ///
    /// # Errors
    /// The store fails.
    pub async fn say_once(&self, topic: String, event: NewEvent) -> Result<(), LedgerError> {
        let text = event.text.clone();
        // Remembered before it is stored: of many who say the same at once, one does.
        let before = self.memory().said.insert(topic.clone(), text.clone());
        if before.as_ref() == Some(&text) {
            return Ok(());
        }
        warn!(topic, "{text}");
        let stored = self.ledger.event(event).await;
        if stored.is_err() {
            self.settle(&topic);
        }
        stored
    }

    /// The topic's trouble is over.
    pub fn settle(&self, topic: &str) {
        self.memory().said.remove(topic);
    }

    /// Reads a node's power and remembers it.
    ///
    /// # Errors
    /// The BMC fails; the power counts as unknown then.
    pub async fn power(&self, name: &NodeName, spec: &NodeSpec) -> Result<PowerState, PowerError> {
        let state = self.redfish.power(&spec.bmc).await;
        self.remember_power(name, &state);
        state
    }

    /// Brings a node's power to where it should be, one step, and remembers what it is then.
    ///
    /// # Errors
    /// The BMC fails; the power counts as unknown then.
    pub async fn bring_power(
        &self,
        name: &NodeName,
        spec: &NodeSpec,
        wanted: WantedPower,
    ) -> Result<PowerState, PowerError> {
        let state = self.redfish.bring(&spec.bmc, wanted).await;
        self.remember_power(name, &state);
        state
    }

    fn remember_power(&self, name: &NodeName, state: &Result<PowerState, PowerError>) {
        let mut seen = self.sight.seen();
        match state {
            Ok(state) => seen.power.insert(name.clone(), (*state, Instant::now())),
            Err(_) => seen.power.remove(name),
        };
    }

    /// Wires a node's ports and reads them back; true if something had to be changed. Its switches
    /// are told at the same time, so that one that fails keeps no port of another where it is.
    ///
    /// # Errors
    /// A switch fails; what its ports are is unknown then. The others were seen to.
    pub async fn wire(
        &self,
        grid: &Grid,
        spec: &NodeSpec,
        place: Place<'_>,
    ) -> Result<bool, SwitchError> {
        let first = match place {
            Place::Idle => grid.idle.vlan,
            Place::Farm(farm, _) => farm.vlan,
            Place::Nowhere => grid.dead,
        };
        let second = match (place, &grid.external) {
            (Place::Farm(_, member), Some(external)) if member.external.is_some() => external.vlan,
            _ => grid.dead,
        };
        let farm_vlan = match place {
            Place::Farm(farm, _) => Some(farm.vlan),
            Place::Idle | Place::Nowhere => None,
        };
        let tries = grid.switches.iter().map(|(name, switch)| {
            let of_switch =
                spec.nics.iter().zip([first, second]).filter(|(n, _)| n.switch == *name);
            let wanted = of_switch.map(|(nic, vlan)| WantedPort {
                port: nic.port.clone(),
                vlan,
                isolated: Some(vlan) != farm_vlan,
            });
            self.wire_on(name, switch, wanted.collect())
        });
        let results = join_all(tries).await;
        results.into_iter().try_fold(false, |changed, result| Ok(changed | result?))
    }

    async fn wire_on(
        &self,
        name: &SwitchName,
        switch: &Switch,
        wanted: Vec<WantedPort>,
    ) -> Result<bool, SwitchError> {
        if wanted.is_empty() {
            return Ok(false);
        }
        let result = self.ovsdb.ensure(switch, &wanted).await;
        let mut seen = self.sight.seen();
        for want in wanted {
            let key = (name.clone(), want.port);
            match &result {
                Ok(_) => seen.ports.insert(key, want.vlan.get()),
                Err(_) => seen.ports.remove(&key),
            };
        }
        result
    }
}
