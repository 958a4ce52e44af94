//! Boots as text: one line a step, and a bar where it lies in time.

use std::fmt::Write as _;

use super::{Boot, Service, Step};

/// Characters of the bar.
const WIDTH: u64 = 32;

/// Boots of a node, newest first.
pub(crate) fn draw(node: &str, boots: &[Boot]) -> String {
    let mut text = String::new();
    if boots.is_empty() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{node}: no boot was seen since bootd was started");
    }
    for (age, boot) in boots.iter().rev().enumerate() {
        if age > 0 {
            text.push('\n');
        }
        one(&mut text, node, boot);
    }
    text
}

fn one(text: &mut String, node: &str, boot: &Boot) {
    let end = boot.steps.iter().map(end_of).max().unwrap_or(0).max(1);
    let reached = boot.reached_ms.last().map_or(0, |(_, at)| *at);
    let (stage, at) = (boot.stage.name(), seconds(reached));
    let _ = writeln!(text, "{node}: boot of {}, {stage} after {at} s", date(boot.began_ms));
    let mut before = 0;
    for step in &boot.steps {
        let service = match step.service {
            Service::Dhcp => "DHCP",
            Service::Tftp => "TFTP",
            Service::Http => "HTTP",
            Service::Iscsi => "iSCSI",
            Service::Agent => "agent",
        };
        let since = step.at_ms.saturating_sub(before);
        before = end_of(step);
        let mut what = step.text.clone();
        if let Some(moved) = step.moved {
            let _ = write!(what, ", {}", size(moved.bytes));
            if moved.bytes < moved.of {
                let _ = write!(what, " of {}", size(moved.of));
            }
            if let Some(rate) = (moved.bytes * 1000).checked_div(moved.took_ms) {
                let _ = write!(what, " at {}/s", size(rate));
            }
        }
        if step.repeated > 0 {
            let _ = write!(what, " ({} times)", u64::from(step.repeated) + 1);
        }
        let mark = if step.failed { '!' } else { ' ' };
        let (at, since) = (seconds(step.at_ms), seconds(since));
        let bar = bar(step, end);
        let _ = writeln!(text, "{mark} {at:>7} +{since:<7} |{bar}| {service:5} {what}");
    }
    if boot.dropped > 0 {
        let _ = writeln!(text, "  and {} more steps", boot.dropped);
    }
    if let Some(diagnosis) = &boot.diagnosis {
        let _ = writeln!(text, "  {diagnosis}");
    }
}

fn end_of(step: &Step) -> u64 {
    step.at_ms + step.moved.map_or(0, |moved| moved.took_ms)
}

fn bar(step: &Step, end: u64) -> String {
    let column = |at: u64| (at * (WIDTH - 1) / end).min(WIDTH - 1);
    let (first, last) = (column(step.at_ms), column(end_of(step)));
    (0..WIDTH).map(|at| if (first..=last).contains(&at) { '=' } else { ' ' }).collect()
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

/// A time, given in milliseconds since the Unix epoch.
fn date(ms: u64) -> String {
    let format =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let at = i64::try_from(ms / 1000).ok();
    let at = at.and_then(|at| time::OffsetDateTime::from_unix_timestamp(at).ok());
    at.and_then(|at| at.format(format).ok()).unwrap_or_else(|| format!("{ms} ms"))
}
