//! Boots as text: one line a step, and a bar where it lies in time. Drawn by bootd's status page and
//! by the operators' command line; what is drawn came over the network.

use std::fmt::Write as _;

use crate::common::{Boot, BootStep};
use crate::text::{age, instant, printable};

/// Characters of the bar.
const WIDTH: u64 = 32;

/// Boots of a node, given oldest first and drawn newest first. Who saw them remembers `remembered_ms`
/// milliseconds, which is said where there is nothing else to say. That none is given does not mean
/// that none was seen: a tenant is shown those of its own time only.
pub fn draw_boots(node: &str, boots: &[Boot], remembered_ms: u64) -> String {
    let node = printable(node, ' ');
    let mut text = String::new();
    if boots.is_empty() {
        let ago = age(remembered_ms);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{node}: no boot to show since bootd was started, {ago} ago");
    }
    for (newer, boot) in boots.iter().rev().enumerate() {
        if newer > 0 {
            text.push('\n');
        }
        one(&mut text, &node, boot);
    }
    text
}

fn one(text: &mut String, node: &str, boot: &Boot) {
    let end = boot.steps.iter().map(end_of).max().unwrap_or(0).max(1);
    let at = seconds(boot.reached.last().map_or(0, |reached| reached.at_ms));
    let (stage, began) = (printable(&boot.stage, ' '), instant(boot.began_ms));
    let _ = writeln!(text, "{node}: boot of {began}, {stage} after {at} s");
    let mut before = 0;
    for step in &boot.steps {
        let since = step.at_ms.saturating_sub(before);
        before = end_of(step);
        let mark = if step.failed { '!' } else { ' ' };
        let (at, since, bar) = (seconds(step.at_ms), seconds(since), bar(step, end));
        let (service, what) = (service(&step.service), what(step));
        let _ = writeln!(text, "{mark} {at:>7} +{since:<7} |{bar}| {service:5} {what}");
    }
    if boot.dropped > 0 {
        let _ = writeln!(text, "  and {} more steps", boot.dropped);
    }
    if !boot.diagnosis.is_empty() {
        let _ = writeln!(text, "  {}", printable(&boot.diagnosis, ' '));
    }
}

fn service(name: &str) -> String {
    match name {
        "dhcp" => "DHCP".to_owned(),
        "tftp" => "TFTP".to_owned(),
        "http" => "HTTP".to_owned(),
        "iscsi" => "iSCSI".to_owned(),
        other => printable(other, ' '),
    }
}

fn what(step: &BootStep) -> String {
    let mut what = printable(&step.text, ' ');
    if let Some(moved) = step.moved {
        let _ = write!(what, ", {}", size(moved.bytes));
        if moved.bytes < moved.of {
            let _ = write!(what, " of {}", size(moved.of));
        }
        let rate = (u128::from(moved.bytes) * 1000).checked_div(moved.took_ms.into());
        if let Some(rate) = rate.and_then(|rate| u64::try_from(rate).ok()) {
            let _ = write!(what, " at {}/s", size(rate));
        }
    }
    if step.repeats > 0 {
        let _ = write!(what, " ({} times)", u64::from(step.repeats) + 1);
    }
    what
}

fn end_of(step: &BootStep) -> u64 {
    step.at_ms.saturating_add(step.moved.map_or(0, |moved| moved.took_ms))
}

fn bar(step: &BootStep, end: u64) -> String {
    let column = |at: u64| u128::from(at) * u128::from(WIDTH - 1) / u128::from(end);
    let (first, last) = (column(step.at_ms), column(end_of(step)));
    let inside = |at: u64| (first..=last).contains(&at.into());
    (0..WIDTH).map(|at| if inside(at) { '=' } else { ' ' }).collect()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:02}", ms / 1000, ms % 1000 / 10)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::common::{BootStage, BootTransfer};

    fn step(at_ms: u64, service: &str, text: &str) -> BootStep {
        let (service, text) = (service.to_owned(), text.to_owned());
        BootStep { at_ms, service, text, ..BootStep::default() }
    }

    fn boot() -> Boot {
        let moved = BootTransfer { bytes: 30_000, of: 70_000, took_ms: 300 };
        Boot {
            began_ms: 1_700_000_000_000,
            window: 3,
            stage: "program".to_owned(),
            reached: vec![BootStage { stage: "program".to_owned(), at_ms: 1300 }],
            steps: vec![
                BootStep { repeats: 1, ..step(0, "dhcp", "asked") },
                BootStep {
                    moved: Some(moved),
                    failed: true,
                    ..step(1000, "tftp", "undionly.kpxe")
                },
            ],
            dropped: 0,
            diagnosis: "TFTP of undionly.kpxe stopped".to_owned(),
        }
    }

    #[test]
    fn a_drawing_shows_every_step_and_the_point_of_failure() {
        let expected = "\
n1: boot of 2023-11-14 22:13:20Z, program after 1.30 s
     0.00 +0.00    |=                               | DHCP  asked (2 times)
!    1.00 +1.00    |                       =========| TFTP  undionly.kpxe, 30 kB of 70 kB at 100 kB/s
  TFTP of undionly.kpxe stopped
";
        assert_eq!(draw_boots("n1", &[boot()], 0), expected);
        let none = draw_boots("n1", &[], 61_000);
        assert_eq!(none, "n1: no boot to show since bootd was started, 1m01s ago\n");
    }

    #[test]
    fn the_newest_boot_comes_first() {
        let older = Boot { began_ms: 0, dropped: 7, ..boot() };
        let text = draw_boots("n1", &[older, boot()], 0);
        let (newer, older) = text.split_once("\n\n").expect("two drawings");
        assert!(newer.starts_with("n1: boot of 2023") && older.starts_with("n1: boot of 1970"));
        assert!(older.contains("\n  and 7 more steps\n"), "{older}");
    }

    proptest! {
        #[test]
        fn whatever_is_sent_each_step_is_one_line(
            steps in proptest::collection::vec(
                (any::<u64>(), any::<String>(), any::<String>(), any::<[u64; 3]>(), any::<u32>()),
                0..4,
            ),
            words in any::<[u64; 2]>(),
            text in any::<String>(),
        ) {
            let steps = steps.into_iter().map(|(at, service, text, [bytes, of, took_ms], repeats)| {
                let moved = Some(BootTransfer { bytes, of, took_ms });
                BootStep { moved, repeats, ..step(at, &service, &text) }
            });
            let boot = Boot {
                began_ms: words[0],
                stage: text.clone(),
                reached: vec![BootStage { stage: String::new(), at_ms: words[1] }],
                steps: steps.collect(),
                diagnosis: format!("x{text}"),
                ..Boot::default()
            };
            let lines = boot.steps.len() + 2;
            let drawn = draw_boots(&text, &[boot], 0);
            prop_assert_eq!(drawn.split('\n').count(), lines + 1, "{}", drawn);
            prop_assert!(!drawn.chars().any(|c| c.is_control() && c != '\n'), "{:?}", drawn);
        }
    }
}
