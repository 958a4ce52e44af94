//! What is wrong with a boot, in words. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Boot, Service, Stage, Step};

/// Boots that got no further than this within [`LOOP`] are a loop.
const LOOPING: usize = 3;
const LOOP: Duration = Duration::from_secs(900);

/// How long a boot may be silent at a stage, by the slowest machines that are known: emulated ones
/// on a crowded host.
fn patience(stage: Stage) -> Duration {
    Duration::from_secs(match stage {
        Stage::Firmware | Stage::Ipxe => 20,
        Stage::Program | Stage::Script => 40,
        Stage::Kernel | Stage::Login | Stage::Attached => 120,
        Stage::Healthy => return Duration::MAX,
    })
}

/// What is wrong with a boot of which nothing was heard for `silent`; `newest`: no other has begun.
pub(super) fn of(boot: &Boot, silent: Duration, newest: bool) -> Option<String> {
    if boot.stage == Stage::Healthy || (newest && silent < patience(boot.stage)) {
        return None;
    }
    let seconds = silent.as_secs();
    let then = if newest { format!("for {seconds} s") } else { "before it began anew".to_owned() };
    if let Some(step) = boot.steps.last().filter(|step| step.failed) {
        return Some(broken(step, &then));
    }
    let text = match boot.stage {
        Stage::Firmware => {
            "its firmware was answered and fetched nothing: another DHCP server was faster, or the \
             answer did not reach it"
        }
        Stage::Program => {
            "it fetched its boot program and asked no second time by DHCP: iPXE did not start, or \
             its link went down"
        }
        Stage::Ipxe => {
            "iPXE was answered and did not fetch its script: it cannot reach HTTP here, or another \
             DHCP server was faster"
        }
        Stage::Script => {
            "iPXE has its script and fetched no kernel: it could not log in to its disk, or reach \
             HTTP; its console says which"
        }
        Stage::Kernel => {
            "its kernel was fetched and nothing came of it: it has no driver for its NIC, or stopped \
             before it got to its disk; its console says which"
        }
        Stage::Login => {
            "it has its disk and no agent has attached: the image did not come up, or has no agent; \
             its console says which"
        }
        Stage::Attached => "its agent is attached and its health check does not pass",
        Stage::Healthy => return None,
    };
    Some(format!("{text} ({then})"))
}

fn broken(step: &Step, then: &str) -> String {
    let what = match (step.service, step.moved) {
        (Service::Tftp, Some(moved)) => {
            let block = moved.bytes;
            format!("TFTP of {} stopped after byte {block} of {}", step.text, moved.of)
        }
        (_, Some(moved)) => {
            format!(
                "the transfer of {} stopped after byte {} of {}",
                step.text, moved.bytes, moved.of
            )
        }
        (_, None) => step.text.clone(),
    };
    format!("{what}, and nothing came after it ({then})")
}

/// What is wrong with a node that begins again and again.
pub(super) fn loops(boots: &VecDeque<Boot>) -> Option<String> {
    let newest = boots.back()?;
    let failing = |boot: &&Boot| {
        let lost = !boot.complete && boot.stage < Stage::Attached;
        lost && newest.began.duration_since(boot.began) < LOOP
    };
    let count = boots.iter().rev().take_while(failing).count();
    if count < LOOPING {
        return None;
    }
    let before = boots.iter().rev().nth(1)?;
    let why = before.diagnosis.as_deref().unwrap_or("the reason is not known");
    Some(format!(
        "it has begun {count} boots one after another without getting to its agent; the last but \
         one: {why}"
    ))
}
