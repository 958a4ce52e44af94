//! The packet filter on bootd's legs, in a table of its own.
//!
//! A host with a leg in two segments answers on both for all its addresses, forwarding off or not.
//! The first rule makes each leg answer for its own address only; the others keep what else runs on
//! this host away from nodes, and packets from crossing it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Stdio;

use croft_proto::{COLLECTOR_PORT, HTTP_PORT, ISCSI_PORT};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::desired::DeviceName;
use crate::{dhcp, tftp};

/// The filter could not be put in force.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    #[error("cannot run nft; install the package nftables")]
    Run(#[source] std::io::Error),
    #[error("nft refused the packet filter (does bootd have CAP_NET_ADMIN?): {0}")]
    Refused(String),
}

/// The rules for these legs, replacing what the table had.
fn ruleset(legs: &BTreeSet<DeviceName>) -> String {
    // Declared before it is deleted, so that deleting a missing one is no error.
    let mut rules = String::from("table inet croft_bootd\ndelete table inet croft_bootd\n");
    if legs.is_empty() {
        return rules;
    }
    let names: Vec<_> = legs.iter().map(|leg| format!("\"{leg}\"")).collect();
    let names = names.join(", ");
    let (dhcp, tftp) = (dhcp::SERVER_PORT, tftp::PORT);
    // TFTP answers from a port of its own choice, so high UDP ports stay open. Nothing can fail
    // when a String is written to.
    let _ = write!(
        rules,
        "table inet croft_bootd {{\n\
         \tset legs {{ type ifname; elements = {{ {names} }} }}\n\
         \tchain input {{\n\
         \t\ttype filter hook input priority filter - 10; policy accept;\n\
         \t\tiifname @legs fib daddr . iif type != {{ local, broadcast, multicast }} drop\n\
         \t\tiifname @legs tcp flags & (syn | ack) == syn \
         tcp dport != {{ {HTTP_PORT}, {ISCSI_PORT}, {COLLECTOR_PORT} }} drop\n\
         \t\tiifname @legs udp dport < 1024 udp dport != {{ {dhcp}, {tftp} }} drop\n\
         \t}}\n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter - 10; policy accept;\n\
         \t\tiifname @legs drop\n\
         \t\toifname @legs drop\n\
         \t}}\n\
         }}\n"
    );
    rules
}

/// Puts the rules for these legs in force, in one step.
pub(super) async fn apply(legs: &BTreeSet<DeviceName>) -> Result<(), FilterError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(FilterError::Run)?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(ruleset(legs).as_bytes()).await.map_err(FilterError::Run)?;
    }
    let output = nft.wait_with_output().await.map_err(FilterError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(FilterError::Refused(text.trim().chars().take(500).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_and_goes_with_the_last_leg() {
        let legs = ["seg100", "seg10"].map(|name| DeviceName::new(name).expect("device"));
        let rules = ruleset(&legs.into());
        assert!(rules.starts_with("table inet croft_bootd\ndelete table inet croft_bootd\n"));
        assert!(rules.contains("elements = { \"seg10\", \"seg100\" }"));
        assert!(rules.contains("fib daddr . iif type != { local, broadcast, multicast } drop"));
        assert!(rules.contains("tcp dport != { 80, 3260, 7100 } drop"));
        assert!(rules.contains("udp dport != { 67, 69 } drop"));
        assert_eq!(ruleset(&BTreeSet::new()).lines().count(), 2);
    }
}
