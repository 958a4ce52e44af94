use proptest::prelude::*;

use super::*;

fn policy() -> Scaling {
    Scaling {
        target: 0.4,
        tolerance_up: 0.1,
        tolerance_down: 0.1,
        window_s: 8,
        shrink_window_s: 20,
        max_step: 1,
    }
}

fn members(cpu: &[Option<f64>]) -> Vec<Measured> {
    cpu.iter()
        .enumerate()
        .map(|(i, cpu)| Measured {
            member: format!("shop/web/{}", i + 1).parse().expect("valid"),
            load: cpu.map(|cpu| (Shares { cpu, network: 0.01, disk: 0.02 }, 8)),
        })
        .collect()
}

fn input<'a>(scaling: &'a Scaling, in_service: &'a [Measured], size: u32) -> Input<'a> {
    Input {
        min: 2,
        max: 4,
        scaling: Some(scaling),
        size,
        in_service,
        leaving: 0,
        set_since_ms: 0,
        watched_since_ms: 0,
        history: &[],
        idle_nodes: 10,
        now_ms: 1_000_000,
    }
}

fn outcome(input: &Input<'_>) -> (u32, String) {
    let decision = decide(input).decision;
    assert!(!decision.reasons.is_empty());
    (decision.to, decision.rule)
}

#[test]
fn a_new_tier_starts_at_min_and_one_outside_its_bounds_is_corrected() {
    let policy = policy();
    assert_eq!(outcome(&input(&policy, &[], 0)), (2, "min".to_owned()));
    assert_eq!(outcome(&input(&policy, &[], 9)), (4, "max".to_owned()));
    let fixed = Input { scaling: None, ..input(&policy, &[], 2) };
    assert_eq!(outcome(&fixed), (2, "fixed".to_owned()));
    // Its min was lowered, or it grew while it scaled.
    let grown = Input { size: 4, ..fixed };
    let decision = decide(&grown).decision;
    assert_eq!((decision.to, decision.rule.as_str()), (2, "fixed"));
    assert_eq!(decision.action, Action::Shrink);
}

#[test]
fn load_above_the_target_grows_by_at_most_a_step() {
    let policy = policy();
    let loaded = members(&[Some(0.5), Some(0.6)]);
    let verdict = decide(&input(&policy, &loaded, 2));
    assert_eq!((verdict.decision.to, verdict.decision.rule.as_str()), (3, "target"));
    assert_eq!(verdict.decision.action, Action::Grow);
    assert!(verdict.decision.reasons[0].contains("cpu load 0.550"), "{:?}", verdict.decision);
    assert_eq!(verdict.recommendation.map(|r| r.members), Some(3));

    let hot = members(&[Some(0.9), Some(0.9)]);
    assert_eq!(outcome(&input(&policy, &hot, 2)), (3, "max-step".to_owned()));
    assert_eq!(outcome(&input(&policy, &hot, 3)), (3, "in-flight".to_owned()));
    assert_eq!(outcome(&input(&policy, &hot, 4)), (4, "max".to_owned()));
    let empty = Input { idle_nodes: 0, ..input(&policy, &hot, 2) };
    assert_eq!(outcome(&empty), (2, "pool".to_owned()));
}

#[test]
fn the_largest_metric_decides() {
    let policy = policy();
    let mut busy = members(&[Some(0.1), Some(0.1)]);
    for member in &mut busy {
        member.load = Some((Shares { cpu: 0.1, network: 0.7, disk: 0.2 }, 8));
    }
    let decision = decide(&input(&policy, &busy, 2)).decision;
    assert_eq!((decision.metric.as_str(), decision.to), ("network", 3));
}

#[test]
fn within_the_tolerances_nothing_changes() {
    let policy = policy();
    for cpu in [0.361, 0.4, 0.439] {
        let steady = members(&[Some(cpu), Some(cpu), Some(cpu)]);
        assert_eq!(outcome(&input(&policy, &steady, 3)), (3, "tolerance".to_owned()), "{cpu}");
    }
}

#[test]
fn a_measurement_needs_a_filled_window_of_the_same_members() {
    let policy = policy();
    let hot = members(&[Some(0.9), Some(0.9)]);
    let fresh = Input { set_since_ms: 993_000, ..input(&policy, &hot, 2) };
    assert_eq!(outcome(&fresh), (2, "window".to_owned()));
    let filled = Input { set_since_ms: 992_000, ..fresh };
    assert_eq!(outcome(&filled).0, 3);
}

#[test]
fn shrinking_waits_for_the_largest_recommendation_of_its_window() {
    let policy = policy();
    let calm = members(&[Some(0.02); 4]);
    let base = input(&policy, &calm, 4);
    let early = Input { watched_since_ms: 985_000, ..base.clone() };
    assert_eq!(outcome(&early), (4, "shrink-window".to_owned()));
    let history = [Recommendation { at_ms: 985_000, members: 3 }];
    let once = Input { history: &history, ..base.clone() };
    assert_eq!(outcome(&once), (3, "shrink-window".to_owned()));
    let old = [Recommendation { at_ms: 979_000, members: 4 }];
    let forgotten = Input { history: &old, ..base.clone() };
    assert_eq!(outcome(&forgotten), (2, "min".to_owned()));
    let leaving = Input { leaving: 1, ..base };
    assert_eq!(outcome(&leaving), (4, "in-flight".to_owned()));
}

#[test]
fn shrinking_leaves_headroom() {
    let policy = policy();
    // Three at 0.25 would be two at 0.375: below the target, above 85 % of it.
    let warm = members(&[Some(0.25), Some(0.25), Some(0.25)]);
    assert_eq!(outcome(&input(&policy, &warm, 3)), (3, "headroom".to_owned()));
    let cool = members(&[Some(0.22), Some(0.22), Some(0.22)]);
    assert_eq!(outcome(&input(&policy, &cool, 3)), (2, "target".to_owned()));
}

#[test]
fn silent_members_are_full_for_shrinking_and_idle_for_growing() {
    let policy = policy();
    let silent = members(&[Some(0.02), Some(0.02), None]);
    let (to, rule) = outcome(&input(&policy, &silent, 3));
    assert_eq!((to, rule.as_str()), (3, "target"));
    let mute = members(&[Some(0.2), None, None]);
    assert_eq!(outcome(&input(&policy, &mute, 3)), (3, "missing-samples".to_owned()));
    let hot = members(&[Some(0.8), None]);
    let (to, _) = outcome(&input(&policy, &hot, 2));
    assert_eq!(to, 2, "a silent member made the tier grow");
}

type AnyInput = (u32, u32, u32, u32, u32, Vec<Option<f64>>, Vec<u32>, u32);

fn any_input() -> impl Strategy<Value = AnyInput> {
    (
        0u32..6,
        0u32..10,
        0u32..20,
        1u32..5,
        0u32..4,
        prop::collection::vec(prop::option::of(0.0f64..=1.0), 0..16),
        prop::collection::vec(0u32..20, 0..6),
        0u32..8,
    )
}

proptest! {
    #[test]
    fn the_laws_hold_for_every_input(
        (min, extra, size, max_step, leaving, cpu, history, idle) in any_input(),
        set_since in 0u64..1_000_000, watched in 0u64..1_000_000,
    ) {
        let policy = Scaling { max_step, ..policy() };
        let in_service = members(&cpu);
        let history: Vec<_> = history
            .into_iter()
            .map(|members| Recommendation { at_ms: 990_000, members })
            .collect();
        let input = Input {
            min, max: min + extra.max(1), leaving, history: &history, idle_nodes: idle,
            set_since_ms: set_since, watched_since_ms: watched,
            ..input(&policy, &in_service, size)
        };
        let decision = decide(&input).decision;
        let measured = in_service.len() as u32;
        // Never outside min..=max.
        prop_assert!((input.min..=input.max).contains(&decision.to));
        prop_assert!(!decision.reasons.is_empty() && !decision.rule.is_empty());
        let bounds = decision.rule == "min" && size < min || decision.rule == "max" && size > input.max;
        if decision.to < size && !bounds {
            // Never while members are on their way in or out.
            prop_assert!(size == measured && leaving == 0);
            // Never below what the window asked for.
            for past in &history {
                prop_assert!(decision.to >= past.members.min(size));
            }
            // Never to more than 85 % of the target.
            let sum: f64 = cpu.iter().map(|cpu| cpu.unwrap_or(1.0)).sum();
            prop_assert!(sum / f64::from(decision.to.max(1)) <= 0.85 * policy.target + 1e-6);
        }
        if decision.to > size && !bounds {
            // Never more on their way than a step allows, nor than there are nodes.
            prop_assert!(decision.to - measured.min(decision.to) <= max_step);
            prop_assert!(decision.to - size <= idle);
        }
        // The same input, the same decision.
        prop_assert_eq!(decide(&input).decision, decision);
    }

    #[test]
    fn more_load_never_means_fewer_members(
        cpu in prop::collection::vec(0.0f64..=1.0, 1..8), more in 0.0f64..0.5, step in 1u32..4,
    ) {
        let policy = Scaling { max_step: step, ..policy() };
        let lower = members(&cpu.iter().map(|cpu| Some(*cpu)).collect::<Vec<_>>());
        let higher = members(&cpu.iter().map(|c| Some((c + more).min(1.0))).collect::<Vec<_>>());
        let size = cpu.len() as u32;
        let at = |in_service: &[Measured]| {
            decide(&Input { min: 1, max: 8, ..input(&policy, in_service, size) }).decision.to
        };
        prop_assert!(at(&higher) >= at(&lower));
    }
}
