//! What real initiators make of data volumes: persistent reservations between two guests, UNMAP from
//! a file system, a volume that grows under one. Each step is seen from outside, or by exact content;
//! at the end the volumes are exported and looked at once more.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use croft_rack::{Node, ShellOutput};
use tokio::process::Command;

use crate::api::in_service;
use crate::demo::{Narrator, farm_ready};
use crate::process::checked;
use crate::site::Site;
use crate::timeline::Timeline;
use crate::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// Size of the exclusive volumes at first, and grown.
const SMALL: u64 = 24;
const LARGE: u64 = 48;

/// What the guest that trims throws away, and what it writes when there is more room: more than the
/// small volume holds.
const JUNK: u64 = 8;
const MORE: u64 = 30;

/// Bytes of junk that may stay: the journal and bitmaps are written meanwhile.
const NOISE: u64 = MIB;

/// LUN of the exclusive volume and of the shared one; the pages of the web server are LUN 1.
const OWN: u8 = 2;
const SHARED: u8 = 3;

const BLOCK: usize = 4096;

const FARM: &str = r#"
[farm]
name = "san"
organization = "acme"

[[tier]]
name = "db"
blueprint = "cluster"
min = 2
max = 2
"#;

fn blueprint(size_mib: u64) -> String {
    format!(
        r#"
[[blueprint]]
name = "cluster"
role = "database"
image = "web-server-test"
boot = "iscsi"
root = {{ kind = "ephemeral", size_mib = 128 }}
data = [
    "shop-content",
    {{ name = "db", kind = "exclusive", size_mib = {size_mib} }},
    {{ name = "fs", kind = "shared", size_mib = 8 }},
]
health = {{ kind = "http", port = 80, path = "/health" }}
"#
    )
}

pub async fn san() -> anyhow::Result<()> {
    let time = Timeline::new();
    let mut site = Site::start().await?;
    let mut narrator = Narrator::new(time);
    site.apply("blueprint", "blueprints", &blueprint(SMALL)).await?;
    site.apply("farm", "san", FARM).await?;
    farm_ready(&mut site, &mut narrator, "san").await?;
    let serving = in_service(&site.api.tier("san", "db").await?);
    let node = |member: &str| {
        let node = serving.get(member).with_context(|| format!("nobody serves {member}"))?;
        anyhow::Ok(site.rack.node(node)?)
    };
    let one = Guest::look(node("san/db/1")?).await?;
    let two = Guest::look(node("san/db/2")?).await?;
    time.step("both guests serve, each with a volume of its own and one that they share");

    let written = reservations(&one, &two).await?;
    time.step("reservations shut out a third party, one that left and one that was preempted");

    let (first, second) = tokio::join!(make_file_system(&one), make_file_system(&two));
    first.and(second)?;
    let freed = trim(&site, &one).await?;
    time.step(format!(
        "fstrim gave {} KiB back to the store, and the other file is whole",
        freed >> 10
    ));
    grow(&mut site, &one).await?;
    time.step(format!("{SMALL} MiB became {LARGE} under a mounted file system, and are used"));

    for guest in [&one, &two] {
        guest.run("umount /mnt && sync").await?;
    }
    site.kill_bootd().await?;
    check_file_system(&site, "own-san-db-1-db", "san-db-1").await?;
    check_file_system(&site, "own-san-db-2-db", "san-db-2").await?;
    let shared = exported(&site, "shared-san-fs").await?;
    let content = tokio::fs::read(&shared).await?;
    for (block, word) in written.iter().enumerate() {
        let bytes = content.get(block * BLOCK..(block + 1) * BLOCK);
        ensure!(bytes == Some(&block_of(word)[..]), "block {block} of the shared volume");
    }
    let rest = content.get(written.len() * BLOCK..).unwrap_or_default();
    ensure!(rest.iter().all(|byte| *byte == 0), "a write that was refused is on the disk");
    time.step("exported, both file systems are clean, and the shared volume is what it should be");
    println!("SAN ok freed_kib={} grown_mib={LARGE}", freed >> 10);
    Ok(())
}

/// A guest and its disks.
struct Guest {
    node: Node,
    own: String,
    shared: String,
}

impl Guest {
    async fn look(node: Node) -> anyhow::Result<Self> {
        let device = async |lun: u8| {
            let path = format!("/sys/class/scsi_device/*:0:0:{lun}/device/block");
            let name = node.shell(&format!("ls {path}"), PATIENCE).await?;
            anyhow::Ok(name.trim().to_owned())
        };
        let (own, shared) = (device(OWN).await?, device(SHARED).await?);
        Ok(Self { own, shared, node })
    }

    async fn run(&self, command: &str) -> anyhow::Result<String> {
        Ok(self.node.shell(command, PATIENCE).await?)
    }

    async fn output(&self, command: &str) -> anyhow::Result<ShellOutput> {
        Ok(self.node.shell_output(command, PATIENCE).await?)
    }

    /// Writes a block of the shared volume, past the page cache.
    async fn write(&self, block: usize, word: &str) -> anyhow::Result<ShellOutput> {
        self.output(&format!(
            "yes {word} | head -c {BLOCK} >/tmp/block; dd if=/tmp/block of=/dev/{} bs={BLOCK} \
             count=1 seek={block} oflag=direct",
            self.shared
        ))
        .await
    }

    /// Writes a block, which must be let through.
    async fn writes(&self, block: usize, word: &str) -> anyhow::Result<()> {
        let done = self.write(block, word).await?;
        ensure!(done.status == 0, "{} cannot write: {}", self.node.name(), done.output);
        Ok(())
    }

    /// Tries to write a block, which must be refused for a reservation.
    async fn is_shut_out(&self, block: usize) -> anyhow::Result<()> {
        let done = self.write(block, "bad").await?;
        // EBADE is what Linux makes of RESERVATION CONFLICT.
        let refused = done.status != 0 && done.output.contains("Invalid exchange");
        ensure!(refused, "{} is not shut out: {done:?}", self.node.name());
        Ok(())
    }

    /// Reads a block of the shared volume, past the page cache.
    async fn reads(&self, block: usize, word: &str) -> anyhow::Result<()> {
        let command = format!(
            "dd if=/dev/{} of=/tmp/read bs={BLOCK} count=1 skip={block} iflag=direct 2>/dev/null && \
             yes {word} | head -c {BLOCK} | cmp - /tmp/read",
            self.shared
        );
        let done = self.output(&command).await?;
        ensure!(done.status == 0, "{}: block {block}: {}", self.node.name(), done.output);
        Ok(())
    }

    /// sg_persist on the shared volume, again after a unit attention (status 6).
    async fn persist(&self, arguments: &str) -> anyhow::Result<String> {
        self.run(&format!(
            "for again in 1 2 3 4; do sg_persist --no-inquiry {arguments} /dev/{}; status=$?; \
             [ $status = 6 ] || break; done; (exit $status)",
            self.shared
        ))
        .await
    }

    /// The registered keys, sorted.
    async fn keys(&self) -> anyhow::Result<Vec<String>> {
        let text = self.persist("--in --read-keys").await?;
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with("0x"));
        let mut keys: Vec<_> = lines.map(str::to_owned).collect();
        keys.sort();
        Ok(keys)
    }
}

/// What a block is full of.
fn block_of(word: &str) -> Vec<u8> {
    format!("{word}\n").bytes().cycle().take(BLOCK).collect()
}

/// Two guests arbitrate; returns what stands in the first blocks of the shared volume then.
async fn reservations(one: &Guest, two: &Guest) -> anyhow::Result<Vec<&'static str>> {
    // Type 5: write exclusive, registrants only.
    const RESERVE: &str = "--out --reserve --param-rk=0xa1 --prout-type=5";
    one.persist("--out --register --param-sark=0xa1").await?;
    one.persist(RESERVE).await?;
    one.writes(0, "first").await?;
    // A third party: it never registered.
    two.is_shut_out(0).await?;
    two.reads(0, "first").await?;

    two.persist("--out --register --param-sark=0xb1").await?;
    two.writes(1, "second").await?;
    one.writes(2, "third").await?;
    one.reads(1, "second").await?;
    two.reads(2, "third").await?;
    ensure!(one.keys().await? == ["0xa1", "0xb1"], "the keys are others");
    let held = two.persist("--in --read-reservation").await?;
    ensure!(held.contains("0xa1") && held.contains("Write Exclusive, registrants only"), "{held}");

    // One that left.
    two.persist("--out --register --param-rk=0xb1 --param-sark=0").await?;
    two.is_shut_out(1).await?;
    one.reads(1, "second").await?;
    one.writes(3, "fourth").await?;

    // The one that holds it is taken for dead and preempted by the other.
    two.persist("--out --register --param-sark=0xb2").await?;
    two.persist("--out --preempt --param-rk=0xb2 --param-sark=0xa1 --prout-type=5").await?;
    one.is_shut_out(3).await?;
    two.writes(4, "fifth").await?;
    one.reads(4, "fifth").await?;
    two.reads(3, "fourth").await?;
    ensure!(two.keys().await? == ["0xb2"], "the preempted key is still there");
    let again = one.output(&format!("sg_persist {RESERVE} /dev/{}", one.shared)).await?;
    // 24 is sg_persist's status for RESERVATION CONFLICT.
    ensure!(again.status == 24, "the preempted guest reserves again: {again:?}");
    Ok(vec!["first", "second", "third", "fourth", "fifth"])
}

/// Makes a file system on the guest's own volume, with the guest's name in it.
async fn make_file_system(guest: &Guest) -> anyhow::Result<()> {
    // Not busybox's. Nothing is left for the kernel to initialise later, so that what is stored
    // afterwards are files.
    let command = format!(
        "/usr/sbin/mke2fs -q -t ext4 -b {BLOCK} -m 0 -E lazy_itable_init=0,lazy_journal_init=0 /dev/{0} && \
         mount -t ext4 /dev/{0} /mnt && hostname >/mnt/name && sync",
        guest.own
    );
    guest.run(&format!("mkdir -p /mnt; {command}")).await?;
    Ok(())
}

/// Deletes a file and trims; returns by how many bytes the store keeps less of the volume.
async fn trim(site: &Site, guest: &Guest) -> anyhow::Result<u64> {
    let fill = format!(
        "cd /mnt && dd if=/dev/urandom of=keep bs=64k count=32 2>/dev/null && \
         sha256sum keep >keep.sum && yes junk | head -c {} >junk && sync",
        JUNK * MIB
    );
    guest.run(&fill).await?;
    let kept = async || anyhow::Ok(site.edge.stored("own-san-db-1-db").await?.own_bytes);
    let full = kept().await?;
    guest.run("rm /mnt/junk && sync && fstrim /mnt").await?;
    let least = JUNK * MIB - NOISE;
    let now = until(PATIENCE, "the store has the trimmed bytes back", async || {
        Ok(Some(kept().await?).filter(|now| now + least <= full))
    })
    .await?;
    guest.run("echo 3 >/proc/sys/vm/drop_caches; cd /mnt && sha256sum -c keep.sum").await?;
    Ok(full - now)
}

/// Makes the exclusive volumes larger by their blueprint while a file system on one is mounted.
async fn grow(site: &mut Site, guest: &Guest) -> anyhow::Result<()> {
    site.apply("blueprint", "blueprints", &blueprint(LARGE)).await?;
    let edge = site.edge.clone();
    until(PATIENCE, "the volume is longer", async || {
        site.watch().await?;
        let size = edge.stored("own-san-db-1-db").await?.size_bytes;
        Ok((size == LARGE * MIB).then_some(()))
    })
    .await?;
    // The unit attention comes with the next command; the kernel says so and leaves the rest to us.
    let told = guest
        .run("echo >/mnt/touch; sync; dmesg | grep -c 'Capacity data has changed'")
        .await
        .context("the guest was not told that the capacity has changed")?;
    ensure!(told.trim() != "0", "{told}");
    let size = format!("blockdev --getsize64 /dev/{}", guest.own);
    let rescan = format!("echo 1 >/sys/block/{}/device/rescan", guest.own);
    let seen = guest.run(&format!("{rescan}; {size}")).await?;
    ensure!(seen.trim() == (LARGE * MIB).to_string(), "the guest sees {seen} bytes");
    let more = format!("yes grown | head -c {}", MORE * MIB);
    let used = format!(
        "resize2fs /dev/{} && {more} >/mnt/more && sync && echo 3 >/proc/sys/vm/drop_caches && \
         {more} | cmp - /mnt/more && cd /mnt && sha256sum -c keep.sum",
        guest.own
    );
    guest.run(&used).await?;
    let kept = edge.stored("own-san-db-1-db").await?.own_bytes;
    ensure!(kept > MORE * MIB, "the store keeps {kept} bytes only");
    // Nothing shrinks: control refuses that, and changes nothing.
    let refused = site.apply("blueprint", "blueprints", &blueprint(SMALL)).await;
    let refused = refused.err().context("control accepted a smaller size")?.to_string();
    ensure!(refused.contains("volumes do not shrink"), "{refused}");
    Ok(())
}

async fn exported(site: &Site, id: &str) -> anyhow::Result<PathBuf> {
    let file = site.dir().join(format!("{id}.raw"));
    site.export(id, &file).await?;
    Ok(file)
}

/// Exports a volume, checks its file system, and reads whose it is.
async fn check_file_system(site: &Site, id: &str, host: &str) -> anyhow::Result<()> {
    let file = exported(site, id).await?;
    checked(Command::new("e2fsck").arg("-fn").arg(&file)).await?;
    let name = checked(Command::new("debugfs").args(["-R", "cat /name"]).arg(&file)).await?;
    ensure!(name.trim() == host, "{id} holds the name {name:?}");
    let size = tokio::fs::metadata(&file).await?.len();
    ensure!(size == LARGE * MIB, "{id} has {size} bytes");
    Ok(())
}
