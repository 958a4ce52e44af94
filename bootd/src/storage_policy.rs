//! Quotas and limits as control gave them: checked, kept for the next start, and put into force.
//!
//! `storage.policy` is the 8 bytes `CROFTSP1`, the BLAKE3 of what follows (32 bytes), then control's
//! `StoragePolicy` message as it came.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use croft_proto::{FarmName, VolumeId, edge};
use prost::Message;

use crate::durable::{self, DurableError};
use crate::volume::{Quota, Rate, VolumeStore};

const MAGIC: &[u8; 8] = b"CROFTSP1";
const HEADER: usize = 40;

/// Why a policy was not taken, or could not be read back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("the policy has faults and changed nothing:\n{0}")]
    Faulty(String),
    #[error("the policy could not be kept and changed nothing")]
    NotKept(#[source] DurableError),
    #[error("the policy in {path} is damaged; remove the file and let control set it again")]
    Damaged { path: PathBuf },
}

/// A policy whose parts fit each other.
#[derive(Debug, Default, PartialEq, Eq)]
struct Policy {
    quotas: BTreeMap<FarmName, Quota>,
    farms: BTreeMap<FarmName, Rate>,
    volumes: BTreeMap<VolumeId, Rate>,
}

/// Reads control's message, or says everything that is wrong with it, a line each.
fn check(message: &edge::StoragePolicy) -> Result<Policy, String> {
    let mut policy = Policy::default();
    let mut faults = Vec::new();
    for (i, farm) in message.farms.iter().enumerate() {
        let name: FarmName = match farm.farm.parse() {
            Ok(name) => name,
            Err(error) => {
                faults.push(format!("farms[{i}].farm: {error}"));
                continue;
            }
        };
        let or_most = |bytes: u64| if bytes == 0 { u64::MAX } else { bytes };
        let most = or_most(farm.most_bytes);
        let (reserve, warn_at) = (farm.reserve_bytes, or_most(farm.warn_bytes));
        if reserve > most {
            faults.push(format!("farms[{i}].reserve_bytes: {reserve} is more than most_bytes"));
        }
        if warn_at != u64::MAX && warn_at > most {
            faults.push(format!("farms[{i}].warn_bytes: {warn_at} is more than most_bytes"));
        }
        let (operations, bytes) = (farm.operations_per_second, farm.bytes_per_second);
        policy.farms.insert(name.clone(), Rate { operations, bytes });
        if policy.quotas.insert(name, Quota { most, reserve, warn_at }).is_some() {
            faults.push(format!("farms[{i}].farm: {} is listed twice", farm.farm));
        }
    }
    for (i, volume) in message.volumes.iter().enumerate() {
        let (operations, bytes) = (volume.operations_per_second, volume.bytes_per_second);
        match volume.volume.parse::<VolumeId>() {
            Err(error) => faults.push(format!("volumes[{i}].volume: {error}")),
            Ok(id) => {
                if policy.volumes.insert(id, Rate { operations, bytes }).is_some() {
                    faults.push(format!("volumes[{i}].volume: {} is listed twice", volume.volume));
                }
            }
        }
    }
    if faults.is_empty() { Ok(policy) } else { Err(faults.join("\n")) }
}

/// Keeps the policy of a volume store.
#[derive(Debug)]
pub(crate) struct PolicyKeeper {
    path: PathBuf,
    volumes: Arc<VolumeStore>,
    /// One writer at a time, from the disk to the store.
    writing: Mutex<()>,
}

impl PolicyKeeper {
    /// Puts into force what an earlier run kept.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub(crate) fn open(state_dir: &Path, volumes: Arc<VolumeStore>) -> Result<Self, PolicyError> {
        let path = state_dir.join("storage.policy");
        let keeper = Self { path, volumes, writing: Mutex::default() };
        if let Some(bytes) = durable::read(&keeper.path).map_err(PolicyError::NotKept)? {
            let damaged = || PolicyError::Damaged { path: keeper.path.clone() };
            let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(damaged)?;
            if header[..8] != *MAGIC || header[8..] != *blake3::hash(body).as_bytes() {
                return Err(damaged());
            }
            let message = edge::StoragePolicy::decode(body).map_err(|_| damaged())?;
            keeper.enforce(check(&message).map_err(PolicyError::Faulty)?);
        }
        Ok(keeper)
    }

    /// Replaces the policy; durable and in force when it returns. Blocks on the disk.
    ///
    /// # Errors
    /// It has faults, or cannot be kept; nothing has changed then.
    pub(crate) fn set(&self, message: &edge::StoragePolicy) -> Result<(), PolicyError> {
        let policy = check(message).map_err(PolicyError::Faulty)?;
        let body = message.encode_to_vec();
        let bytes = [MAGIC, blake3::hash(&body).as_bytes().as_slice(), &body].concat();
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        durable::write(&self.path, &bytes).map_err(PolicyError::NotKept)?;
        self.enforce(policy);
        Ok(())
    }

    fn enforce(&self, policy: Policy) {
        self.volumes.set_quotas(&policy.quotas);
        self.volumes.set_limits(&policy.farms, policy.volumes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::{ImageStore, VolumeError, VolumeKind, VolumeSpec};

    fn farm(name: &str, most_bytes: u64) -> edge::FarmPolicy {
        edge::FarmPolicy { farm: name.to_owned(), most_bytes, ..Default::default() }
    }

    #[test]
    fn a_policy_is_in_force_at_once_and_after_a_restart() {
        let dir = tempfile::tempdir().expect("directory");
        let open = || {
            let images = Arc::new(ImageStore::open(dir.path().join("images")));
            let volumes = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
            let volumes = Arc::new(volumes);
            (PolicyKeeper::open(dir.path(), Arc::clone(&volumes)).expect("read"), volumes)
        };
        let spec = VolumeSpec {
            id: "a".parse().expect("valid"),
            kind: VolumeKind::Plain,
            image: None,
            size_bytes: 1 << 20,
            farm: Some("shop".parse().expect("valid")),
        };
        let (keeper, volumes) = open();
        volumes.ensure(&spec).expect("made");
        let limit = edge::VolumePolicy {
            volume: "a".to_owned(),
            operations_per_second: 10,
            bytes_per_second: 0,
        };
        let policy = edge::StoragePolicy { farms: vec![farm("shop", 8192)], volumes: vec![limit] };
        keeper.set(&policy).expect("taken");
        let faulty = edge::StoragePolicy { farms: vec![farm("shop", 4096); 2], volumes: vec![] };
        assert!(matches!(keeper.set(&faulty), Err(PolicyError::Faulty(_))));
        let volume = volumes.get(&spec.id).expect("open");
        volume.write_at(0, &[1; 8192]).expect("within the quota");
        volume.flush().expect("flushed");
        drop((keeper, volumes, volume));
        let (_keeper, volumes) = open();
        let volume = volumes.get(&spec.id).expect("open");
        assert!(matches!(volume.write_at(8192, &[1; 512]), Err(VolumeError::Quota { .. })));
        let wait = (0..20).map(|_| volume.charge(512)).max();
        assert!(wait.is_some_and(|wait| wait.as_millis() > 500), "{wait:?}");
    }

    #[test]
    fn every_fault_of_a_policy_is_named() {
        let small = edge::FarmPolicy { reserve_bytes: 9, warn_bytes: 9, ..farm("b", 8) };
        let limit =
            |name: &str| edge::VolumePolicy { volume: name.to_owned(), ..Default::default() };
        let message = edge::StoragePolicy {
            farms: vec![farm("", 0), small, farm("b", 0)],
            volumes: vec![limit("v"), limit("v"), limit("_")],
        };
        let faults = check(&message).expect_err("faulty");
        for part in [
            "farms[0].farm",
            "farms[1].reserve",
            "farms[1].warn",
            "farms[2].farm",
            "volumes[1]",
            "volumes[2]",
        ] {
            assert!(faults.contains(part), "{part} is not in {faults}");
        }
    }

    #[test]
    fn a_damaged_policy_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let images = Arc::new(ImageStore::open(dir.path().join("images")));
        let volumes = VolumeStore::open(dir.path().join("volumes"), images).expect("opened");
        std::fs::write(dir.path().join("storage.policy"), b"CROFTSP1 and nonsense")
            .expect("written");
        let opened = PolicyKeeper::open(dir.path(), Arc::new(volumes));
        assert!(matches!(opened, Err(PolicyError::Damaged { .. })));
    }
}
