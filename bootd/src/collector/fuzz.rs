//! Fuzz target: what agents say.

use croft_proto::agent::{AgentMessage, agent_message::Body};
use prost::Message;

use super::clean;

/// A message. Cleaned, it is bounded whatever was in it, and cleaning it again changes nothing.
pub fn message(data: &[u8]) -> bool {
    let Ok(message) = AgentMessage::decode(data) else { return false };
    match message.body {
        Some(Body::Sample(sample)) => {
            let backends = clean::backends(sample.backends);
            assert!(backends.len() <= clean::MAX_BACKENDS);
            backends.iter().for_each(|backend| name(&backend.member));
            assert_eq!(clean::backends(backends.clone()), backends);
            text(&sample.health_detail);
            if let Some(load) = sample.load.map(clean::load) {
                share(load.cpu);
                assert!(load.nics.len().max(load.disks.len()) <= clean::MAX_DEVICES);
                load.nics.iter().for_each(|nic| name(&nic.name));
                for disk in &load.disks {
                    name(&disk.name);
                    share(disk.busy);
                }
                assert_eq!(clean::load(load.clone()), load);
            }
            true
        }
        Some(Body::MembershipApplied(applied)) => {
            text(&applied.error);
            true
        }
        Some(Body::PhaseReached(_)) => true,
        // Hello is what the desk judges.
        Some(Body::Hello(_)) | None => false,
    }
}

fn share(value: f64) {
    assert!((0.0..=1.0).contains(&value), "{value} is no share");
}

fn name(name: &str) {
    assert!(name.chars().count() <= clean::MAX_NAME && !name.contains(char::is_control));
}

fn text(said: &str) {
    let cleaned = clean::text(said);
    assert!(cleaned.chars().count() <= clean::MAX_TEXT && !cleaned.contains(char::is_control));
    assert_eq!(clean::text(&cleaned), cleaned);
}
