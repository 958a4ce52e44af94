//! Writes a tree as an ext4 file system into a file, the same bytes for the same tree.
//!
//! `mke2fs` makes the empty file system with a fixed identifier, hash seed and clock;
//! `debugfs` then puts in one entry after the other in the order of the tree. Neither mounts
//! anything, and the order does not depend on how the building machine lists its directories,
//! as it would with `mke2fs -d`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Error;
use crate::run::{failed, run, tool};
use crate::tree::{Entry, Tree};

/// The clock of every file and file system: 2020-01-01 00:00 UTC. Not 0, which some tools take
/// for "never".
pub(crate) const TIME: &str = "1577836800";

/// What a file system looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Its label, 16 bytes at most; longer ones are cut.
    pub label: String,
    /// Its size in MiB.
    pub size_mib: u64,
    /// Whether it has a journal: those that are written to need one.
    pub journal: bool,
}

/// Writes the tree to the new file `disk`. `scratch` is a directory for passing files on.
///
/// # Errors
/// A tool is missing or fails (the tree does not fit, for example), or a file cannot be read.
pub fn write(tree: &Tree, layout: &Layout, scratch: &Path, disk: &Path) -> Result<(), Error> {
    make_empty(layout, disk)?;
    let script = scratch.join("debugfs.script");
    fs::write(&script, fill_script(tree, scratch)?).map_err(Error::write(&script))?;
    let mut command = tool("debugfs");
    command.env("E2FSPROGS_FAKE_TIME", TIME).arg("-w").arg("-f").arg(&script).arg(disk);
    let output = command.env("LC_ALL", "C").output().map_err(|source| Error::Start {
        program: "debugfs".to_owned(),
        package: "e2fsprogs",
        source,
    })?;
    // Its status is 0 whatever failed; all that it says of a success is its own name.
    let complaints = String::from_utf8_lossy(&output.stderr);
    let clean = complaints.lines().all(|line| line.starts_with("debugfs 1."));
    if !output.status.success() || !clean {
        let output = std::process::Output { stdout: Vec::new(), ..output };
        return Err(failed(&command, &output));
    }
    // Counts and checksums must be those that a check would write.
    run(tool("e2fsck").args(["-f", "-n"]).arg(disk), "e2fsprogs")?;
    Ok(())
}

fn make_empty(layout: &Layout, disk: &Path) -> Result<(), Error> {
    let identity = blake3::hash(layout.label.as_bytes());
    let hex = &identity.to_hex()[..32];
    let uuid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let label: String = layout.label.chars().take(16).collect();
    let features = if layout.journal { "has_journal" } else { "^has_journal" };
    let mut command = tool("mke2fs");
    command
        .env("E2FSPROGS_FAKE_TIME", TIME)
        // Of the machine's own defaults none counts.
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-U", &uuid])
        .args(["-L", &label, "-O"])
        .arg(format!("none,{features},dir_index,ext_attr,extent,filetype,flex_bg,huge_file,\
                      large_file,dir_nlink,extra_isize,metadata_csum,64bit,resize_inode,sparse_super"))
        // Tables are written here, not by a kernel thread on each node.
        .args(["-E", &format!("hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0,nodiscard")])
        .args(["-i", "16384"]);
    if layout.journal {
        command.args(["-J", "size=4"]);
    }
    command.arg(disk).arg(format!("{}M", layout.size_mib));
    run(&mut command, "e2fsprogs")?;
    Ok(())
}

/// The commands for `debugfs(8)` that fill an empty file system.
fn fill_script(tree: &Tree, scratch: &Path) -> Result<String, Error> {
    let mut script = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = script.write_fmt(text);
        script.push('\n');
    };
    for (number, (path, entry)) in tree.iter().enumerate() {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        line(format_args!("cd \"/{above}\""));
        match entry {
            Entry::Directory(mode) => {
                line(format_args!("mkdir \"{name}\""));
                line(format_args!("set_inode_field \"{name}\" mode 0{:o}", 0o040_000 | mode));
            }
            Entry::File(mode, content) => {
                let host = content.on_host(scratch, number)?;
                line(format_args!("write \"{host}\" \"{name}\""));
                line(format_args!("set_inode_field \"{name}\" mode 0{:o}", 0o100_000 | mode));
            }
            Entry::Link(target) => line(format_args!("symlink \"{name}\" \"{target}\"")),
        }
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;

    fn disk_of(tree: &Tree) -> Result<Vec<u8>, Error> {
        let dir = tempfile::tempdir().expect("directory");
        let layout = Layout { label: "a-test".to_owned(), size_mib: 16, journal: true };
        let disk = dir.path().join("disk");
        write(tree, &layout, dir.path(), &disk)?;
        let ask = |what: &str| {
            let mut command = tool("debugfs");
            String::from_utf8(run(command.args(["-R", what]).arg(&disk), "e2fsprogs")?)
                .map_err(|_| Error::UnusablePath { path: what.to_owned() })
        };
        assert_eq!(ask("cat /etc/a file")?, "");
        assert_eq!(ask("cat \"/etc/a file\"")?, "hello");
        let list = ask("ls -l /etc")?;
        assert!(list.lines().any(|l| l.contains("100640 (1)") && l.contains("a file")), "{list}");
        assert!(ask("stat /link")?.contains("Fast link dest: \"etc\""));
        Ok(fs::read(&disk).expect("readable"))
    }

    fn tree() -> Tree {
        let mut tree = Tree::default();
        let file = Entry::File(0o640, Content::Bytes(b"hello".to_vec()));
        tree.insert("etc/a file", file).expect("valid");
        tree.insert("link", Entry::Link("etc".to_owned())).expect("valid");
        tree
    }

    #[test]
    fn a_tree_always_becomes_the_same_disk() {
        let first = disk_of(&tree()).expect("written");
        assert_eq!(first.len(), 16 << 20);
        assert!(first == disk_of(&tree()).expect("written"), "two disks of one tree differ");
        let mut other = tree();
        other.insert("etc/b", Entry::Directory(0o700)).expect("valid");
        assert!(first != disk_of(&other).expect("written"));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let mut tree = tree();
        let large = Entry::File(0o644, Content::Bytes(vec![7; 17 << 20]));
        tree.insert("large", large).expect("valid");
        let fault = disk_of(&tree).expect_err("17 MiB do not fit into 16");
        assert!(matches!(fault, Error::Tool { .. }), "{fault}");
    }
}
