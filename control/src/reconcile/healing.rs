//! Whether a node in service has failed. Power off is a fact; an agent's silence is evidence only
//! while the boot server can be trusted to hear, and while it is not everybody's.

use std::time::Duration;

use croft_proto::edge;

use super::context::Context;
use super::step::Subject;
use crate::drivers::power::PowerState;
use crate::model::{Node, NodeState};
use crate::sight::BootView;
use crate::world::now_ms;

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
    /// Nodes in service, and those that were until they failed for silence a moment ago.
    pub in_service: usize,
    /// Those of them whose agents are silent for longer than the limit, or were when they failed.
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

/// How much longer than the limit a node must be silent before it is judged. Agents are polled each
/// second, every one at its own moment: when all fall silent together, the first one counts as
/// silent well before the last. Nobody is judged until all of them count.
const GRACE: Duration = Duration::from_secs(3);

/// How long a node that failed for silence counts among the silent, so that an outage which spreads
/// slowly is not taken for many small ones.
const RECENT: Duration = Duration::from_secs(60);

/// How the reason of a quarantine for silence begins. The stored reason is what tells, also after a
/// restart of control, why a node was quarantined.
const SILENT: &str = "its agent has been silent";

impl Evidence {
    /// Whether so many are silent that the network is to blame.
    pub fn is_common(&self) -> bool {
        self.silent >= MANY && self.silent * 2 > self.in_service
    }
}

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
    let too_long = evidence.silence_limit + GRACE;
    let Some(silence) = evidence.silence.filter(|s| *s > too_long) else {
        return Verdict::Sound;
    };
    if evidence.is_common() {
        return Verdict::Withheld(format!(
            "{} of {} nodes in service are silent at once: the network is suspected and no node is \
             replaced for silence; check the boot server's segments",
            evidence.silent, evidence.in_service
        ));
    }
    Verdict::Failed(format!("{SILENT} for {} s", silence.as_secs()))
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

/// Whether a node failed for silence a moment ago.
fn fell_silent(node: &Node, now_ms: u64) -> bool {
    node.state == NodeState::Quarantined
        && node.reason.starts_with(SILENT)
        && Duration::from_millis(now_ms.saturating_sub(node.since_ms)) < RECENT
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
    let is_silent = |n: &Node| silence(&view, n).is_some_and(|s| s > silence_limit);
    let now = now_ms();
    let fallen = subject.world.nodes.values().filter(|node| fell_silent(node, now)).count();
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
        in_service: serving().count() + fallen,
        silent: serving().filter(|node| is_silent(node)).count() + fallen,
        silence_limit,
        settle: Duration::from_secs(policy.bootd_settle_s),
        boot_limit: Duration::from_secs(subject.grid.deadlines.booting),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn silence_is_judged_when_all_who_fell_silent_together_count() {
        let just = Evidence { silence: Some(Duration::from_secs(17)), ..quiet() };
        assert_eq!(judge(&just), Verdict::Sound);
        let long = Evidence { silence: Some(Duration::from_millis(18_001)), ..quiet() };
        assert!(matches!(judge(&long), Verdict::Failed(_)));
    }

    #[test]
    fn a_node_counts_as_silent_for_a_while_after_it_failed_for_that() {
        let mut node = Node::new("n1".parse().expect("valid"), 1_000);
        assert!(!fell_silent(&node, 2_000));
        let Verdict::Failed(reason) = judge(&quiet()) else { panic!("it has not failed") };
        (node.state, node.reason) = (NodeState::Quarantined, reason);
        assert!(fell_silent(&node, 2_000) && fell_silent(&node, 60_999));
        assert!(!fell_silent(&node, 61_000), "it counts for ever");
        node.reason = "its power is off".to_owned();
        assert!(!fell_silent(&node, 2_000));
    }

    proptest! {
        /// The boot server's trunk dies: every node was last heard at its own moment of the second
        /// before. Control looks every half second, and who fails is not in service any more.
        #[test]
        fn nobody_fails_when_all_fall_silent_together(
            heard in prop::collection::vec(0u64..1100, 3..20),
            first_look in 0u64..500,
            forget: bool,
        ) {
            let mut failed = vec![false; heard.len()];
            for now in (1100 + first_look..40_000).step_by(500) {
                let silence: Vec<_> =
                    heard.iter().map(|at| Duration::from_millis(now - at)).collect();
                let before = failed.clone();
                // Whether or not those who failed still count.
                let gone = before.iter().filter(|gone| **gone).count();
                let fallen = if forget { 0 } else { gone };
                let limit = quiet().silence_limit;
                let serving = || silence.iter().zip(&before).filter(|(_, gone)| !**gone);
                let silent = serving().filter(|(silence, _)| **silence > limit).count() + fallen;
                for (i, silence) in silence.iter().enumerate() {
                    let evidence = Evidence {
                        silence: Some(*silence),
                        in_service: serving().count() + fallen,
                        silent,
                        bootd_uptime: Some(Duration::from_secs(3600)),
                        ..quiet()
                    };
                    failed[i] |= matches!(judge(&evidence), Verdict::Failed(_));
                }
            }
            prop_assert!(!failed.contains(&true), "{failed:?}");
        }
    }

    #[test]
    fn a_reboot_has_the_time_of_a_boot() {
        let early = Evidence { rebooting: Some(Duration::from_secs(40)), ..quiet() };
        assert_eq!(judge(&early), Verdict::Sound);
        let late = Evidence { rebooting: Some(Duration::from_secs(301)), ..quiet() };
        assert!(matches!(judge(&late), Verdict::Failed(_)));
    }
}
