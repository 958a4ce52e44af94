//! The whole model at one revision, and the way to change it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use croft_proto::{BlueprintName, FarmName, MemberName, NodeName, OrganizationName, VolumeId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, watch};
use tracing::info;

use crate::model::{Blueprint, Event, Farm, FarmVolume, Grid, Member, NewEvent, Node, keys};
use crate::store::{Compare, Op, Outcome, Range, Store, StoreError, Txn};

/// Events that are kept; older ones are deleted.
const KEPT_EVENTS: u64 = 20_000;

/// Why the model could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored value has another shape than this program knows.
    #[error("store: the value of {key} cannot be read; run the program version that wrote it")]
    Decode {
        /// The key.
        key: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// A value cannot be written as JSON.
    #[error("store: the value for {key} cannot be encoded")]
    Encode {
        /// The key.
        key: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}

/// A value and the revision that wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept<T> {
    value: T,
    /// What a change of it must compare with.
    pub revision: u64,
}

impl<T> Deref for Kept<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// Everything that decisions are made from, at one revision.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// The store's revision when it was read.
    pub revision: u64,
    /// The grid, once one was applied.
    pub grid: Option<Kept<Grid>>,
    /// Nodes of the grid.
    pub nodes: BTreeMap<NodeName, Kept<Node>>,
    /// Blueprints.
    pub blueprints: BTreeMap<BlueprintName, Kept<Blueprint>>,
    /// Farms.
    pub farms: BTreeMap<FarmName, Kept<Farm>>,
    /// Revision of the newest-farm key: what adding a farm must compare with.
    pub newest_farm: u64,
    /// Members.
    pub members: BTreeMap<MemberName, Kept<Member>>,
    /// Data volumes.
    pub volumes: BTreeMap<VolumeId, Kept<FarmVolume>>,
}

impl World {
    /// Reads it.
    ///
    /// # Errors
    /// The store fails, or holds what this program cannot read.
    pub async fn load(store: &dyn Store) -> Result<Self, LedgerError> {
        let mut world = Self::default();
        let snapshot = store.range(Range::prefix(keys::MODEL)).await?;
        world.revision = snapshot.revision;
        for entry in snapshot.entries {
            let (key, value, revision) = (entry.key.as_str(), &entry.value, entry.revision);
            if key == keys::NEWEST_FARM {
                world.newest_farm = revision;
            } else if key == keys::GRID {
                world.grid = Some(Kept { value: decode(key, value)?, revision });
            } else if key.starts_with(keys::NODES) {
                let value: Node = decode(key, value)?;
                world.nodes.insert(value.name.clone(), Kept { value, revision });
            } else if key.starts_with(keys::BLUEPRINTS) {
                let value: Blueprint = decode(key, value)?;
                world.blueprints.insert(value.name.clone(), Kept { value, revision });
            } else if key.starts_with(keys::FARMS) {
                let value: Farm = decode(key, value)?;
                world.farms.insert(value.spec.name.clone(), Kept { value, revision });
            } else if key.starts_with(keys::MEMBERS) {
                let value: Member = decode(key, value)?;
                world.members.insert(value.name.clone(), Kept { value, revision });
            } else if key.starts_with(keys::VOLUMES) {
                let value: FarmVolume = decode(key, value)?;
                world.volumes.insert(value.id.clone(), Kept { value, revision });
            }
        }
        Ok(world)
    }

    /// Members of a farm, in order.
    pub fn members_of<'a>(&'a self, farm: &'a FarmName) -> impl Iterator<Item = &'a Kept<Member>> {
        self.members.values().filter(move |member| member.name.farm == *farm)
    }

    /// Blueprints for those who plan.
    pub fn plain_blueprints(&self) -> BTreeMap<&BlueprintName, &Blueprint> {
        self.blueprints.iter().map(|(name, kept)| (name, &**kept)).collect()
    }

    /// Data volumes of a farm, in the order of their ids.
    pub fn volumes_of<'a>(
        &'a self,
        farm: &'a FarmName,
    ) -> impl Iterator<Item = &'a Kept<FarmVolume>> {
        self.volumes.values().filter(move |volume| volume.farm == *farm)
    }

    /// The node that serves a member.
    pub fn node_of(&self, member: &Member) -> Option<&Kept<Node>> {
        self.nodes.get(member.node.as_ref()?)
    }
}

/// Reads a stored value.
///
/// # Errors
/// It has another shape.
pub fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, LedgerError> {
    serde_json::from_slice(value)
        .map_err(|source| LedgerError::Decode { key: key.to_owned(), source })
}

/// A change being put together: all of it is written, or nothing.
#[derive(Debug, Default)]
pub struct Batch {
    txn: Txn,
    events: Vec<NewEvent>,
}

impl Batch {
    /// Writes a value whose key was last written at `revision`; 0 means it must not be there.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn put<T: Serialize>(
        &mut self,
        key: String,
        revision: u64,
        value: &T,
    ) -> Result<(), LedgerError> {
        self.txn.compares.push(Compare { key: key.clone(), revision });
        self.put_anyway(key, value)
    }

    /// Writes a value whatever was there.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn put_anyway<T: Serialize>(&mut self, key: String, value: &T) -> Result<(), LedgerError> {
        match serde_json::to_vec(value) {
            Ok(value) => {
                self.txn.ops.push(Op::Put { key, value });
                Ok(())
            }
            Err(source) => Err(LedgerError::Encode { key, source }),
        }
    }

    /// Requires that a key was last written at `revision`.
    pub fn require(&mut self, key: String, revision: u64) {
        self.txn.compares.push(Compare { key, revision });
    }

    /// Removes a key that was last written at `revision`.
    pub fn delete(&mut self, key: String, revision: u64) {
        self.txn.compares.push(Compare { key: key.clone(), revision });
        self.txn.ops.push(Op::Delete { key });
    }

    /// Removes a key whatever was there.
    pub fn delete_anyway(&mut self, key: String) {
        self.txn.ops.push(Op::Delete { key });
    }

    /// Says what happened; stored with the change.
    pub fn event(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Whether it would change anything.
    pub fn is_empty(&self) -> bool {
        self.txn.ops.is_empty() && self.events.is_empty()
    }
}

/// The only writer of the store: it numbers events and wakes whoever waits for changes.
#[derive(Debug)]
pub struct Ledger {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    next_event: Mutex<u64>,
    changed: watch::Sender<u64>,
}

impl Ledger {
    /// Goes on after the newest stored event.
    ///
    /// # Errors
    /// The store fails.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, LedgerError> {
        let newest = store.range(Range::newest(keys::EVENTS, 1)).await?;
        let last = match newest.entries.first() {
            Some(entry) => decode::<Event>(&entry.key, &entry.value)?.sequence,
            None => 0,
        };
        let (changed, _) = watch::channel(newest.revision);
        let next_event = Mutex::new(last + 1);
        Ok(Self { inner: Arc::new(Inner { store, next_event, changed }) })
    }

    /// The store that it writes.
    pub fn store(&self) -> &dyn Store {
        &*self.inner.store
    }

    /// Wakes at each commit.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Writes a batch with its events. Once begun it goes on to its end, even if the caller goes
    /// away: a transaction that the store has taken commits in any case, and numbers that it used
    /// must not be used again.
    ///
    /// # Errors
    /// The store fails. A conflict is no error: the caller reads again and decides anew.
    pub async fn commit(&self, batch: Batch) -> Result<Outcome, LedgerError> {
        let inner = self.inner.clone();
        // Lasts as long as one transaction, and is waited for by whoever did not go away.
        match tokio::spawn(async move { inner.commit(batch).await }).await {
            Ok(outcome) => outcome,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            // The program ends.
            Err(_) => Err(StoreError::Closed.into()),
        }
    }

    /// Stores one event.
    ///
    /// # Errors
    /// The store fails.
    pub async fn event(&self, event: NewEvent) -> Result<(), LedgerError> {
        let mut batch = Batch::default();
        batch.event(event);
        self.commit(batch).await.map(|_| ())
    }
}

impl Inner {
    async fn commit(&self, batch: Batch) -> Result<Outcome, LedgerError> {
        let Batch { mut txn, events } = batch;
        // Held across the commit: numbers and store order are the same.
        let mut next = self.next_event.lock().await;
        let first = *next;
        let mut stored = Vec::with_capacity(events.len());
        for (sequence, event) in (first..).zip(events) {
            let organization = match &event.farm {
                Some(farm) => self.owner(&txn, farm).await?,
                None => None,
            };
            let event = event.number(sequence, now_ms(), organization);
            let key = keys::event(sequence);
            match serde_json::to_vec(&event) {
                Ok(value) => txn.ops.push(Op::Put { key, value }),
                Err(source) => return Err(LedgerError::Encode { key, source }),
            }
            if let Some(old) = sequence.checked_sub(KEPT_EVENTS) {
                txn.ops.push(Op::Delete { key: keys::event(old) });
            }
            stored.push(event);
        }
        let outcome = self.store.txn(txn).await?;
        if let Outcome::Committed(revision) = outcome {
            *next = first + stored.len() as u64;
            drop(next);
            for event in &stored {
                let Event { sequence, kind, node, farm, member, text, .. } = event;
                info!(sequence, kind, node, farm, member, "{text}");
            }
            self.changed.send_replace(revision);
        }
        Ok(outcome)
    }

    /// Whose a farm is: as the transaction makes it, or else as it is before.
    async fn owner(
        &self,
        txn: &Txn,
        farm: &FarmName,
    ) -> Result<Option<OrganizationName>, LedgerError> {
        let key = keys::farm(farm);
        let made = txn.ops.iter().find_map(|op| match op {
            Op::Put { key: put, value } if *put == key => Some(value.clone()),
            _ => None,
        });
        let value = match made {
            Some(value) => Some(value),
            None => self.store.get(&key).await?.map(|entry| entry.value),
        };
        let farm: Option<Farm> = value.map(|value| decode(&key, &value)).transpose()?;
        Ok(farm.map(|farm| farm.spec.organization))
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
