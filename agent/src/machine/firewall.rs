//! The packet filter of a balancer: from outside, only what the farm exposes.
//!
//! The image brings the table `inet croft` with its chains; the agent fills the set `exposed`
//! that they ask. Where the table is missing, the agent makes it whole.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::MachineError;

pub(super) async fn expose(
    nft: &Path,
    outer: Option<&str>,
    ports: &BTreeSet<u16>,
) -> Result<(), MachineError> {
    let failed = |source| MachineError::RunNft { program: nft.display().to_string(), source };
    let known = Command::new(nft)
        .args(["list", "table", "inet", "croft"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .map_err(failed)?
        .success();
    let script = script(known, outer, ports);
    let mut child = Command::new(nft)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(MachineError::Nft(
        said.lines().next().unwrap_or("no reason given").chars().take(200).collect(),
    ))
}

/// One transaction: the set is never seen half filled.
fn script(table_known: bool, outer: Option<&str>, ports: &BTreeSet<u16>) -> String {
    let mut script = String::new();
    if !table_known {
        script.push_str("add table inet croft\n");
    }
    script.push_str("add set inet croft exposed { type inet_service; }\n");
    script.push_str("flush set inet croft exposed\n");
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        script.push_str(&format!("add element inet croft exposed {{ {} }}\n", ports.join(", ")));
    }
    if table_known {
        return script;
    }
    script.push_str(
        "add chain inet croft forward { type filter hook forward priority 0; policy drop; }\n",
    );
    if let Some(outer) = outer {
        script.push_str(
            "add chain inet croft input { type filter hook input priority 0; policy accept; }\n",
        );
        for rule in [
            "ct state established,related accept",
            "tcp dport @exposed accept",
            // Errors that TCP needs (path MTU), and nothing else of ICMP.
            "icmp type destination-unreachable accept",
            "drop",
        ] {
            script.push_str(&format!("add rule inet croft input iifname \"{outer}\" {rule}\n"));
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_table_has_its_set_filled_and_nothing_else_touched() {
        assert_eq!(
            script(true, Some("eth1"), &BTreeSet::from([443, 80])),
            "add set inet croft exposed { type inet_service; }\n\
             flush set inet croft exposed\n\
             add element inet croft exposed { 80, 443 }\n"
        );
    }

    #[test]
    fn a_missing_table_is_made_whole() {
        assert_eq!(
            script(false, Some("eth1"), &BTreeSet::new()),
            "add table inet croft\n\
             add set inet croft exposed { type inet_service; }\n\
             flush set inet croft exposed\n\
             add chain inet croft forward { type filter hook forward priority 0; policy drop; }\n\
             add chain inet croft input { type filter hook input priority 0; policy accept; }\n\
             add rule inet croft input iifname \"eth1\" ct state established,related accept\n\
             add rule inet croft input iifname \"eth1\" tcp dport @exposed accept\n\
             add rule inet croft input iifname \"eth1\" icmp type destination-unreachable accept\n\
             add rule inet croft input iifname \"eth1\" drop\n"
        );
    }
}
