//! What bootd sees now, in one message.

use std::time::SystemTime;

use croft_proto::{NodeName, edge};

use super::EdgeParts;
use crate::boot::Seen;
use crate::desired::Desired;
use crate::keeper::OpenSession;

/// Looks. Blocks on the disk for the list of images.
pub(super) fn collect(parts: &EdgeParts) -> edge::StatusReply {
    let desired = parts.holder.now();
    let sessions = parts.sessions.open_sessions();
    let uptime = parts.desk.presence().uptime();
    edge::StatusReply {
        generation: Some(desired.generation.into()),
        uptime_ms: millis(uptime),
        nodes: desired.nodes.keys().map(|name| node(parts, name, &sessions)).collect(),
        volumes: volumes(parts, &desired),
        images: images(parts),
        segments_ready: parts.ready.names().into_iter().map(String::from).collect(),
        newest_event: Some(*parts.journal.watch().borrow()),
    }
}

fn node(parts: &EdgeParts, name: &NodeName, sessions: &[OpenSession]) -> edge::NodeStatus {
    let seen = parts.desk.presence().seen(name);
    let mine: Vec<_> = sessions.iter().filter(|session| session.node == *name).collect();
    let stage = stage(&seen, mine.iter().map(|session| session.since));
    edge::NodeStatus {
        node: name.to_string(),
        window: parts.desk.window(name),
        stage: stage.into(),
        attached: seen.attached,
        health: seen.health.into(),
        health_detail: seen.health_detail,
        sessions: u32::try_from(mine.len()).unwrap_or(u32::MAX),
        dhcp_segment: seen.dhcp_segment.map(String::from).unwrap_or_default(),
        membership_version: seen.membership_version,
        phase: seen.phase.into(),
        backends: seen.backends,
        // An agent that spoke just now has been silent for a millisecond: 0 is for "never".
        silent_ms: seen.heard.map_or(0, |heard| millis(heard.elapsed()).max(1)),
    }
}

/// iPXE logs in before it fetches the kernel; a login after that is the operating system's.
fn stage(seen: &Seen, logins: impl Iterator<Item = SystemTime>) -> edge::Stage {
    let mut logins = logins;
    let booting = seen.stage == edge::Stage::Kernel;
    match seen.kernel_at {
        Some(kernel) if booting && logins.any(|login| login > kernel) => edge::Stage::Disk,
        _ => seen.stage,
    }
}

fn volumes(parts: &EdgeParts, desired: &Desired) -> Vec<edge::VolumeStatus> {
    let status = |id: &croft_proto::VolumeId| {
        let outcome = parts.keeper.outcome(id);
        let (ready, error) = (outcome.is_ok(), outcome.err().unwrap_or_default());
        edge::VolumeStatus { id: id.to_string(), ready, error }
    };
    let wanted = desired.volumes.keys().map(status);
    let dropped = parts.holder.dropped().into_iter().map(|id| edge::VolumeStatus {
        id: id.to_string(),
        ready: false,
        error: "it is about to be deleted".to_owned(),
    });
    wanted.chain(dropped).collect()
}

fn images(parts: &EdgeParts) -> Vec<edge::Image> {
    let list = parts.images.list().unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "images cannot be listed");
        Vec::new()
    });
    let image = |info: crate::volume::ImageInfo| edge::Image {
        name: info.name.to_string(),
        version: info.version.to_string(),
        kind: info.kind.to_string(),
        size_bytes: info.size_bytes,
        current: info.current,
        boots: info.boots.into_iter().map(|method| edge::BootMethod::from(method).into()).collect(),
    };
    list.into_iter().map(image).collect()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_login_after_the_kernel_is_the_operating_systems() {
        let kernel = SystemTime::now();
        let (before, after) = (kernel - Duration::from_secs(1), kernel + Duration::from_secs(1));
        let mut booting = Seen::default();
        booting.stage = edge::Stage::Kernel;
        booting.kernel_at = Some(kernel);
        assert_eq!(stage(&booting, [before].into_iter()), edge::Stage::Kernel);
        assert_eq!(stage(&booting, [before, after].into_iter()), edge::Stage::Disk);
        let mut attached = booting;
        attached.stage = edge::Stage::Attached;
        assert_eq!(stage(&attached, [after].into_iter()), edge::Stage::Attached);
    }
}
