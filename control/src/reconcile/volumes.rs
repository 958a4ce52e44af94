//! Data volumes: made with the first member that has them, made longer when a blueprint says so, and
//! gone with their farm.

use std::collections::BTreeSet;

use croft_proto::VolumeId;

use super::context::StepError;
use crate::model::{Farm, FarmVolume, Member, NewEvent, keys, volume};
use crate::plan::data::larger;
use crate::sight::BootView;
use crate::world::{Batch, Kept, World};

/// Adds those that a new member needs and that are not there: neither in the store nor in `made`,
/// which the batch makes already. What an earlier member of this name had is this one's.
///
/// # Errors
/// A value cannot be encoded.
pub fn add_missing(
    batch: &mut Batch,
    world: &World,
    member: &Member,
    made: &mut BTreeSet<VolumeId>,
) -> Result<(), StepError> {
    for wanted in member.boot.data.iter().filter_map(|data| data.volume()) {
        let Some(new) = FarmVolume::of(&member.name, wanted) else { continue };
        if world.volumes.contains_key(&new.id) || !made.insert(new.id.clone()) {
            continue;
        }
        batch.put(keys::volume(&new.id), 0, &new)?;
        let text = format!("{}: {} MiB, {}, empty", new.id, new.size_mib, new.kind());
        batch.event(NewEvent::new("volume-created", text).farm(&new.farm));
    }
    Ok(())
}

/// Adds larger sizes.
///
/// # Errors
/// A value cannot be encoded.
pub fn grow(batch: &mut Batch, world: &World, farm: &Farm) -> Result<(), StepError> {
    let blueprints = world.plain_blueprints();
    for kept in world.volumes_of(&farm.spec.name) {
        let Some(size_mib) = larger(kept, &farm.spec, &blueprints) else { continue };
        let next = FarmVolume { size_mib, ..(**kept).clone() };
        batch.put(keys::volume(&kept.id), kept.revision, &next)?;
        let text = format!("{}: {} → {size_mib} MiB", kept.id, kept.size_mib);
        batch.event(NewEvent::new("volume-grows", text).farm(&kept.farm));
    }
    Ok(())
}

/// Adds the end of all volumes of a farm.
pub fn remove(batch: &mut Batch, world: &World, farm: &Farm) {
    for kept in world.volumes_of(&farm.spec.name) {
        batch.delete(keys::volume(&kept.id), kept.revision);
    }
}

/// Whether the boot server may still have volumes that members of a farm wrote. A farm of the same
/// name, perhaps another organization's, would find them.
pub fn may_be_left(view: &BootView, farm: &Kept<Farm>) -> bool {
    let told = view.told.iter().flat_map(|told| &told.volumes).map(|volume| &volume.id);
    let seen = view.status.iter().flat_map(|status| &status.volumes).map(|volume| &volume.id);
    view.since(farm.revision).is_none()
        || told.chain(seen).any(|id| volume::is_of(&farm.spec.name, id))
}
