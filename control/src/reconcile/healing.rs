//! Whether a node in service has failed. Power off is a fact; an agent's silence is evidence only
//! while the boot server can be trusted to hear, and while it is not everybody's.

use std::time::Duration;

use croft_proto::edge;

use super::context::Context;
use super::step::Subject;
use crate::drivers::power::PowerState;
use crate::model::{Node, NodeState};
use crate::sight::BootView;

/// What is known of a node in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Its BMC says that it is off.
    pub is_off: bool,
    /// How long its agent has been silent; `None` if the boot server cannot tell.
    pub silence: Option<Duration>,
    /// It boots again by itself, and for how long already.
    pub rebooting: Option<Duration>,
    /// The boot server's uptime; `None` if it does not answer.
    pub bootd_uptime: Option<Duration>,
    /// Nodes in service.
    pub in_service: usize,
    /// Those of them whose agents are silent for too long.
    pub silent: usize,
    /// Silence that is too long.
    pub silence_limit: Duration,
    /// Uptime from which the boot server can be trusted to hear.
    pub settle: Duration,
    /// How long a boot may take.
    pub boot_limit: Duration,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Sound,
    /// It is fenced and replaced.
    Failed(String),
    /// It would have failed, but too many did: the network is suspected.
    Withheld(String),
}

/// Fewest nodes that count as many.
const MANY: usize = 3;

/// Judges the evidence.
pub fn judge(evidence: &Evidence) -> Verdict {
    if evidence.is_off {
        return Verdict::Failed("its power is off".to_owned());
    }
    let Some(uptime) = evidence.bootd_uptime else { return Verdict::Sound };
    if uptime < evidence.settle {
        return Verdict::Sound;
    }
    if let Some(since) = evidence.rebooting {
        if since < evidence.boot_limit {
            return Verdict::Sound;
        }
        let limit = evidence.boot_limit.as_secs();
        return Verdict::Failed(format!("it rebooted and did not come back within {limit} s"));
    }
    let Some(silence) = evidence.silence.filter(|s| *s > evidence.silence_limit) else {
        return Verdict::Sound;
    };
    if evidence.silent >= MANY && evidence.silent * 2 > evidence.in_service {
        return Verdict::Withheld(format!(
            "{} of {} nodes in service are silent at once: the network is suspected and no node is \
             replaced for silence; check the boot server's segments",
            evidence.silent, evidence.in_service
        ));
    }
    Verdict::Failed(format!("its agent has been silent for {} s", silence.as_secs()))
}

/// How long a node's agent has been silent.
fn silence(view: &BootView, node: &Node) -> Option<Duration> {
    let status = view.status.as_deref()?;
    let seen = view.node(&node.name).filter(|seen| seen.window == node.window);
    let millis = match seen {
        Some(seen) if seen.attached || seen.silent_ms > 0 => seen.silent_ms,
        // Never heard since the boot server started.
        _ => status.uptime_ms,
    };
    Some(Duration::from_millis(millis))
}

fn is_rebooting(seen: &edge::NodeStatus) -> bool {
    use edge::Stage;
    let under_way = matches!(
        seen.stage(),
        Stage::Firmware | Stage::Ipxe | Stage::Script | Stage::Kernel | Stage::Disk
    );
    under_way && !seen.attached
}

/// Gathers what is known of a node in service.
pub fn evidence(cx: &Context, subject: Subject<'_>) -> Evidence {
    let node = subject.node;
    let view = cx.sight.boot();
    let policy = &subject.grid.policy;
    let silence_limit = Duration::from_secs(policy.agent_silence_s);
    let serving = || subject.world.nodes.values().filter(|n| n.state == NodeState::InService);
    let rebooting = view.node(&node.name).is_some_and(is_rebooting);
    if !rebooting {
        cx.forget(&node.name, "rebooting");
    }
    let power = cx.sight.seen().power.get(&node.name).map(|(state, _)| *state);
    Evidence {
        is_off: power == Some(PowerState::Off),
        silence: silence(&view, node),
        rebooting: rebooting.then(|| cx.lasting(&node.name, "rebooting")),
        bootd_uptime: view.status.as_deref().map(|s| Duration::from_millis(s.uptime_ms)),
        in_service: serving().count(),
        silent: serving().filter(|n| silence(&view, n).is_some_and(|s| s > silence_limit)).count(),
        silence_limit,
        settle: Duration::from_secs(policy.bootd_settle_s),
        boot_limit: Duration::from_secs(subject.grid.deadlines.booting),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Evidence {
        Evidence {
            is_off: false,
            silence: Some(Duration::from_secs(20)),
            rebooting: None,
            bootd_uptime: Some(Duration::from_secs(100)),
            in_service: 4,
            silent: 1,
            silence_limit: Duration::from_secs(15),
            settle: Duration::from_secs(30),
            boot_limit: Duration::from_secs(300),
        }
    }

    #[test]
    fn power_off_is_a_fact_whatever_else_is_known() {
        let off = Evidence { is_off: true, bootd_uptime: None, silent: 4, ..quiet() };
        assert!(matches!(judge(&off), Verdict::Failed(_)));
    }

    #[test]
    fn silence_counts_only_while_the_boot_server_can_hear() {
        assert!(matches!(judge(&quiet()), Verdict::Failed(_)));
        let talking = Evidence { silence: Some(Duration::from_secs(1)), ..quiet() };
        assert_eq!(judge(&talking), Verdict::Sound);
        let away = Evidence { bootd_uptime: None, ..quiet() };
        assert_eq!(judge(&away), Verdict::Sound);
        let restarted = Evidence { bootd_uptime: Some(Duration::from_secs(29)), ..quiet() };
        assert_eq!(judge(&restarted), Verdict::Sound);
    }

    #[test]
    fn silence_of_many_stops_healing() {
        assert!(matches!(judge(&Evidence { silent: 3, ..quiet() }), Verdict::Withheld(_)));
        let half = Evidence { silent: 3, in_service: 6, ..quiet() };
        assert!(matches!(judge(&half), Verdict::Failed(_)));
        let pair = Evidence { silent: 2, in_service: 2, ..quiet() };
        assert!(matches!(judge(&pair), Verdict::Failed(_)));
    }

    #[test]
    fn a_reboot_has_the_time_of_a_boot() {
        let early = Evidence { rebooting: Some(Duration::from_secs(40)), ..quiet() };
        assert_eq!(judge(&early), Verdict::Sound);
        let late = Evidence { rebooting: Some(Duration::from_secs(301)), ..quiet() };
        assert!(matches!(judge(&late), Verdict::Failed(_)));
    }
}
