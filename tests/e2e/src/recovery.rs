//! Kills with real guests: what runs goes on, and a move that was under way is finished.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::sleep;

use crate::api::in_service;
use crate::client::Traffic;
use crate::demo::{self, Narrator, TEST_WEB, exposed_url};
use crate::site::Site;
use crate::timeline::Timeline;
use crate::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// How long bootd stays away: longer than an initiator's own timeouts of a few seconds.
const OUTAGE: Duration = Duration::from_secs(8);

/// Writes checksummed files for ever, each synced, and counts them.
const DISK_LOAD: &str = "mkdir -p /var/load && cd /var/load && \
    (n=0; while dd if=/dev/urandom of=f.$((n % 16)) bs=64k count=8 conv=fsync 2>/dev/null && \
    sha256sum f.$((n % 16)) >s.$((n % 16)).new && mv s.$((n % 16)).new s.$((n % 16)); \
    do n=$((n + 1)); echo $n >count; done) </dev/null >/dev/null 2>&1 &";

/// Makes the root read-only, whoever writes to it, and looks at every structure of it. The last thing
/// a guest does.
const FSCK: &str = "echo u >/proc/sysrq-trigger; \
    until grep -q ' / ext4 ro' /proc/mounts; do sleep 1; done; \
    e2fsck -fn /dev/sda 2>&1; echo e2fsck=$?";

/// A node's count of files written by [`DISK_LOAD`].
async fn written(site: &Site, node: &str) -> anyhow::Result<u64> {
    let count = "[ ! -e /var/load/count ] || cat /var/load/count";
    let text = site.rack.node(node)?.shell(count, PATIENCE).await?;
    // The file is empty for a moment whenever it is written anew.
    let number = text.trim();
    if number.is_empty() { Ok(0) } else { Ok(number.parse()?) }
}

pub async fn kill_bootd() -> anyhow::Result<()> {
    let time = Timeline::new();
    let mut site = Site::start().await?;
    let mut narrator = Narrator::new(time);
    site.apply_example("blueprint", "blueprints", &[TEST_WEB]).await?;
    demo::boot(&mut site, &mut narrator, time).await?;
    let url = exposed_url(&site).await?;
    let before = in_service(&site.api.tier("shop", "web").await?);
    for node in before.values() {
        site.rack.node(node)?.shell(DISK_LOAD, PATIENCE).await?;
        until(PATIENCE, "the disk load writes", async || {
            Ok((written(&site, node).await? > 3).then_some(()))
        })
        .await?;
    }
    time.step("both web servers write to their disks");
    let last_event = site.api.events(0).await?.last().map_or(0, |event| event.sequence);
    let trickle = Traffic::start(&site.rack, &format!("{url}/whoami"), 4.0)?;
    site.kill_bootd().await?;
    time.step("bootd killed");
    sleep(OUTAGE).await;
    site.start_bootd()?;
    time.step(format!("bootd started again after {} s", OUTAGE.as_secs()));
    for node in before.values() {
        let paused = written(&site, node).await?;
        until(PATIENCE, "the disk load goes on", async || {
            site.watch().await?;
            Ok((written(&site, node).await? > paused + 3).then_some(()))
        })
        .await?;
    }
    time.step("both go on writing");
    until(PATIENCE, "both agents are attached again", async || {
        site.watch().await?;
        for node in before.values() {
            if !site.edge.node(node).await.is_ok_and(|status| status.attached) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    for node in before.values() {
        let shell = site.rack.node(node)?;
        // The load stops; what it wrote is read back from the disk and not from memory.
        let check = "for p in /proc/[0-9]*; do \
            [ \"$(readlink $p/cwd)\" = /var/load ] && kill -9 ${p#/proc/}; done; sync; \
            echo 3 >/proc/sys/vm/drop_caches; cd /var/load && cat s.[0-9] s.1[0-5] | \
            sha256sum -c >/tmp/check 2>&1; grep -c ': OK' /tmp/check; grep -c ': FAILED' /tmp/check; \
            cat /sys/fs/ext4/sda/errors_count; dmesg | grep -c 'I/O error'; true";
        let answer = shell.shell(check, PATIENCE).await?;
        let numbers: Vec<u64> =
            answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let [good, bad, file_system, io] = numbers[..] else {
            anyhow::bail!("{node} answered {answer:?}");
        };
        // The file that was being written when the load was killed may differ from its sum.
        ensure!(good >= 3 && bad <= 1, "{node}: {good} files are whole, {bad} are not");
        ensure!(file_system == 0, "{node}: ext4 counted {file_system} errors");
        ensure!(io == 0, "{node}: the kernel saw {io} I/O errors");
    }
    let after = in_service(&site.api.tier("shop", "web").await?);
    ensure!(after == before, "members moved: {before:?} became {after:?}");
    let events = site.api.events(last_event).await?;
    // Every change of a node's state has the same kind.
    let fenced = events.iter().find(|e| {
        e.kind.contains("fence") || (e.kind == "node-state" && e.text.contains("→ Quarantined"))
    });
    ensure!(fenced.is_none(), "something was fenced because bootd was away: {fenced:?}");
    let report = trickle.stop().await?;
    ensure!(report.failed == 0, "requests failed: {:?}", report.failures);
    for node in before.values() {
        let answer = site.rack.node(node)?.shell(FSCK, PATIENCE).await?;
        ensure!(answer.trim().ends_with("e2fsck=0"), "{node}'s file system: {answer}");
    }
    time.step("every file reads back, file systems are clean, no I/O error, nothing fenced");
    println!("KILL-BOOTD ok outage={} failed_requests=0", OUTAGE.as_secs());
    Ok(())
}

/// The example's balancer with its root in memory: it has nothing to keep.
const RAM_BALANCER: (&str, &str) = (
    "to stay on one version\nboot = \"iscsi\"\nroot = { kind = \"ephemeral\", size_mib = 512 }",
    "to stay on one version\nboot = \"ram\"",
);

pub async fn kill_control() -> anyhow::Result<()> {
    let time = Timeline::new();
    let mut site = Site::start().await?;
    let mut narrator = Narrator::new(time);
    site.apply_example("blueprint", "blueprints", &[TEST_WEB, RAM_BALANCER]).await?;
    demo::boot(&mut site, &mut narrator, time).await?;
    let url = exposed_url(&site).await?;
    for node in in_service(&site.api.tier("shop", "lb").await?).values() {
        let boot = site.croft(&["node", "boot", node]).await?;
        let in_memory = boot.contains("root file system") && !boot.contains("iSCSI");
        ensure!(in_memory, "the balancer has a disk:\n{boot}");
    }
    let before = in_service(&site.api.tier("shop", "web").await?);
    site.kill_control_at("Booting");
    let (_, load) = demo::grow(&mut site, &mut narrator, time, &url, &before).await?;
    ensure!(!site.kill_is_due(), "control was not killed in the middle of the grow");
    time.step("control was killed while the new node booted, and finished the move");
    let grown = in_service(&site.api.tier("shop", "web").await?);
    ensure!(grown.len() == before.len() + 1, "{grown:?}");
    site.kill_control_at("Draining");
    demo::shrink(&mut site, &mut narrator, time, load).await?;
    ensure!(!site.kill_is_due(), "control was not killed in the middle of the shrink");
    let after = in_service(&site.api.tier("shop", "web").await?);
    ensure!(after.len() == before.len(), "{after:?}");
    let idle = site.api.nodes().await?;
    let taken = idle.values().filter(|node| node.state != "Idle").count();
    ensure!(taken == before.len() + 1, "{taken} nodes are not idle");
    time.step("control was killed while the member drained, and finished the move");
    println!("KILL-CONTROL ok");
    Ok(())
}
