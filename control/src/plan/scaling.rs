//! How many members a tier should have: target tracking.
//!
//! `desired = ceil(n × current / target)` over the members in service, where `current` is the
//! largest of CPU, network and disk, each averaged over the window and over the members. A member
//! without samples counts as idle when the tier would grow and as fully loaded when it would
//! shrink. The rules, in the order in which they settle a decision:
//!
//! | rule | effect |
//! |---|---|
//! | `min`, `max` | a size outside min..=max is corrected at once, whatever the load |
//! | `fixed` | the tier has no `[tier.scaling]`: its size is min |
//! | `no-members` | nobody is in service: nothing to measure |
//! | `window` | the window is not yet filled since the set of members in service changed |
//! | `tolerance` | the load is within the tolerances of the target |
//! | `missing-samples` | it would shrink, but for members without samples |
//! | `in-flight` | members are on their way in or out |
//! | `max` | growth would exceed max |
//! | `pool` | the idle pool has no node for growth |
//! | `max-step` | growth is limited to `max_step` members at once |
//! | `target` | growth to what the load needs |
//! | `target` | the load needs what there is |
//! | `min` | shrinking would go below min |
//! | `shrink-window` | the window asked for more within `shrink_window_s`, or is not yet that old |
//! | `headroom` | the load after shrinking would exceed 85 % of the target |

use croft_proto::MemberName;

use crate::load::Shares;
use crate::model::{Action, Decision, DecisionInput, Scaling};

/// Share of the target that the load may reach after shrinking.
const HEADROOM: f64 = 0.85;

/// Guards `ceil` against the last bit of a float.
const FUZZ: f64 = 1e-9;

/// A member in service, with its load over the window; `None` without samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The member.
    pub member: MemberName,
    /// Its averages and the number of samples.
    pub load: Option<(Shares, u32)>,
}

/// What the load once asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recommendation {
    /// When.
    pub at_ms: u64,
    /// For how many members.
    pub members: u32,
}

/// All that a decision depends on.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    /// Fewest members.
    pub min: u32,
    /// Most members.
    pub max: u32,
    /// Target tracking, if the tier has it.
    pub scaling: Option<&'a Scaling>,
    /// Members that should exist now.
    pub size: u32,
    /// Members in service.
    pub in_service: &'a [Measured],
    /// Members that a node still serves on its way out.
    pub leaving: u32,
    /// When the set of members in service last changed.
    pub set_since_ms: u64,
    /// Since when the tier's load has been watched without a gap.
    pub watched_since_ms: u64,
    /// What the load asked for within the shrink window, in order; of it only what a later and
    /// larger recommendation did not outdo.
    pub history: &'a [Recommendation],
    /// Idle nodes that growth could take.
    pub idle_nodes: u32,
    /// Now.
    pub now_ms: u64,
}

/// A decision and, if the load could be measured, what it asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The decision.
    pub decision: Decision,
    /// For the history.
    pub recommendation: Option<Recommendation>,
}

/// The tier's load by one metric.
#[derive(Debug, Clone, Copy)]
struct Measure {
    metric: &'static str,
    value: f64,
}

/// Decides a tier's size.
pub fn decide(input: &Input<'_>) -> Verdict {
    let mut verdict = judge(input);
    let decision = &mut verdict.decision;
    decision.action = match decision.to.cmp(&decision.from) {
        std::cmp::Ordering::Greater => Action::Grow,
        std::cmp::Ordering::Less => Action::Shrink,
        std::cmp::Ordering::Equal => Action::Hold,
    };
    verdict
}

fn judge(input: &Input<'_>) -> Verdict {
    let measured = input.in_service.len() as u32;
    if input.size < input.min {
        let why = format!("the tier should have at least {} members", input.min);
        return settled(input, input.min, "min", why, None);
    }
    if input.size > input.max {
        let why = format!("the tier may have at most {} members", input.max);
        return settled(input, input.max, "max", why, None);
    }
    let Some(scaling) = input.scaling else {
        let why = format!("the tier does not scale; it has {} members", input.min);
        return settled(input, input.min, "fixed", why, None);
    };
    if measured == 0 {
        return hold(input, "no-members", "no member is in service, so no load is known", None);
    }
    let window_ms = scaling.window_s * 1000;
    let age = input.now_ms.saturating_sub(input.set_since_ms.max(input.watched_since_ms));
    if age < window_ms {
        let why = format!(
            "the same {measured} members have been measured for {} s; {} s are needed",
            age / 1000,
            scaling.window_s
        );
        return hold(input, "window", &why, None);
    }
    measured_verdict(input, scaling, measured)
}

fn measured_verdict(input: &Input<'_>, scaling: &Scaling, measured: u32) -> Verdict {
    // Whoever says nothing is taken for idle when that could make the tier grow, and for fully
    // loaded when that could make it shrink.
    let low = largest(input.in_service, 0.0);
    let high = largest(input.in_service, 1.0);
    let grow_above = scaling.target * (1.0 + scaling.tolerance_up);
    let shrink_below = scaling.target * (1.0 - scaling.tolerance_down);
    let wanted = |load: f64| (f64::from(measured) * load / scaling.target - FUZZ).ceil().max(1.0);
    let remember = |members: u32| {
        Some(Recommendation { at_ms: input.now_ms, members: members.clamp(input.min, input.max) })
    };

    if low.value > grow_above {
        let want = wanted(low.value) as u32;
        let mut verdict = grow(input, scaling, want, measured, low);
        verdict.recommendation = remember(want.max(input.size));
        return verdict;
    }
    if high.value >= shrink_below {
        let mut verdict = if low.value < shrink_below {
            let why = format!(
                "{} would allow fewer members, but not every member reports, and silent ones count \
                 as fully loaded",
                show(low, scaling)
            );
            hold(input, "missing-samples", &why, Some((low, scaling)))
        } else {
            let why = format!(
                "{} lies within the tolerances, {:.3} to {:.3}",
                show(low, scaling),
                shrink_below,
                grow_above
            );
            hold(input, "tolerance", &why, Some((low, scaling)))
        };
        verdict.recommendation = remember(input.size);
        return verdict;
    }
    let want = wanted(high.value) as u32;
    let mut verdict = shrink(input, scaling, want, measured, high);
    verdict.recommendation = remember(want);
    verdict
}

fn grow(input: &Input<'_>, scaling: &Scaling, want: u32, measured: u32, load: Measure) -> Verdict {
    let seen = Some((load, scaling));
    let needs = format!(
        "{} over {measured} members needs {want}: ceil({measured} × {:.3} / {:.3})",
        show(load, scaling),
        load.value,
        scaling.target
    );
    if want <= input.size {
        let why = format!("{needs}; the tier has {} with those on their way", input.size);
        return hold(input, "in-flight", &why, seen);
    }
    if input.size >= input.max {
        return hold(input, "max", &format!("{needs}; at most {} are allowed", input.max), seen);
    }
    let in_flight = input.size.saturating_sub(measured);
    if in_flight >= scaling.max_step {
        let why = format!(
            "{needs}; {in_flight} are on their way already and max_step is {}",
            scaling.max_step
        );
        return hold(input, "in-flight", &why, seen);
    }
    if input.idle_nodes == 0 {
        return hold(input, "pool", &format!("{needs}; the idle pool has no node left"), seen);
    }
    let step = input.size + (scaling.max_step - in_flight);
    let pool = input.size.saturating_add(input.idle_nodes);
    let to = want.min(input.max).min(step).min(pool);
    let (rule, limit) = if to == want {
        ("target", String::new())
    } else if to == input.max {
        ("max", format!("; at most {} are allowed", input.max))
    } else if to == step {
        ("max-step", format!("; at most {} may be on their way at once", scaling.max_step))
    } else {
        ("pool", format!("; the idle pool has {} nodes", input.idle_nodes))
    };
    settled(input, to, rule, needs + &limit, seen)
}

fn shrink(
    input: &Input<'_>,
    scaling: &Scaling,
    want: u32,
    measured: u32,
    load: Measure,
) -> Verdict {
    let seen = Some((load, scaling));
    let needs = format!("{} over {measured} members needs only {want}", show(load, scaling));
    if want >= input.size {
        return hold(input, "target", &format!("{needs}, which is what it has"), seen);
    }
    if input.size <= input.min {
        return hold(input, "min", &format!("{needs}; at least {} are kept", input.min), seen);
    }
    if input.size != measured || input.leaving > 0 {
        let why = format!(
            "{needs}; {} of {} members are in service and {} are leaving: first that must end",
            measured, input.size, input.leaving
        );
        return hold(input, "in-flight", &why, seen);
    }
    let window_ms = scaling.shrink_window_s * 1000;
    let watched = input.now_ms.saturating_sub(input.watched_since_ms);
    if watched < window_ms {
        let why = format!(
            "{needs}; the load has been watched for {} of {} s",
            watched / 1000,
            scaling.shrink_window_s
        );
        return hold(input, "shrink-window", &why, seen);
    }
    let since = input.now_ms.saturating_sub(window_ms);
    let lately = input.history.iter().filter(|past| past.at_ms >= since).map(|past| past.members);
    let window = lately.max().unwrap_or(0).max(want);
    if window >= input.size {
        let why = format!(
            "{needs}; within the last {} s the load needed {window}",
            scaling.shrink_window_s
        );
        return hold(input, "shrink-window", &why, seen);
    }
    let total = f64::from(measured) * load.value;
    let roomy = (total / (HEADROOM * scaling.target) - FUZZ).ceil().max(0.0) as u32;
    if roomy >= input.size {
        let why = format!(
            "{needs}; with one member less the load would be {:.3}, above 85 % of the target",
            total / f64::from(input.size - 1).max(1.0)
        );
        return hold(input, "headroom", &why, seen);
    }
    let to = window.max(roomy).max(input.min);
    let (rule, limit) = if to == want {
        ("target", String::new())
    } else if to == input.min {
        ("min", format!("; at least {} are kept", input.min))
    } else if to == roomy {
        ("headroom", format!("; {roomy} keep the load below 85 % of the target"))
    } else {
        ("shrink-window", format!("; the last {} s needed {window}", scaling.shrink_window_s))
    };
    settled(input, to, rule, needs + &limit, seen)
}

/// The largest metric, averaged over the members; silent ones count as `missing`.
fn largest(members: &[Measured], missing: f64) -> Measure {
    let mean = |pick: fn(&Shares) -> f64| {
        let sum: f64 =
            members.iter().map(|m| m.load.as_ref().map_or(missing, |(s, _)| pick(s))).sum();
        sum / members.len().max(1) as f64
    };
    let mut best = Measure { metric: "cpu", value: mean(|s| s.cpu) };
    for measure in [
        Measure { metric: "network", value: mean(|s| s.network) },
        Measure { metric: "disk", value: mean(|s| s.disk) },
    ] {
        if measure.value > best.value {
            best = measure;
        }
    }
    best
}

fn show(load: Measure, scaling: &Scaling) -> String {
    format!("{} load {:.3} (target {:.3})", load.metric, load.value, scaling.target)
}

fn hold(input: &Input<'_>, rule: &str, why: &str, seen: Option<(Measure, &Scaling)>) -> Verdict {
    settled(input, input.size, rule, why.to_owned(), seen)
}

fn settled(
    input: &Input<'_>,
    to: u32,
    rule: &str,
    why: String,
    seen: Option<(Measure, &Scaling)>,
) -> Verdict {
    let silent = input.in_service.iter().filter(|m| m.load.is_none()).count();
    let mut reasons = vec![why];
    if silent > 0 && seen.is_some() {
        reasons.push(format!("{silent} of {} members report no load", input.in_service.len()));
    }
    let inputs = input
        .in_service
        .iter()
        .map(|m| {
            let (shares, samples) =
                m.load.unwrap_or((Shares { cpu: -1.0, network: -1.0, disk: -1.0 }, 0));
            DecisionInput {
                member: m.member.clone(),
                cpu: shares.cpu,
                network: shares.network,
                disk: shares.disk,
                samples,
            }
        })
        .collect();
    let decision = Decision {
        at_ms: input.now_ms,
        from: input.size,
        to,
        action: Action::Hold,
        rule: rule.to_owned(),
        reasons,
        metric: seen.map_or_else(String::new, |(load, _)| load.metric.to_owned()),
        value: seen.map_or(-1.0, |(load, _)| load.value),
        target: input.scaling.map_or(0.0, |scaling| scaling.target),
        inputs,
    };
    Verdict { decision, recommendation: None }
}

#[cfg(test)]
#[path = "scaling_tests.rs"]
mod tests;
