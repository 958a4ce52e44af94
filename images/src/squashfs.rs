//! Writes a tree as a squashfs, which a node that keeps its root in memory mounts: the same bytes for
//! the same tree.
//!
//! `gensquashfs` packs what a list names (`gen_init_cpio`'s format: type, path, mode, owner, group,
//! source or target), in the order of the tree. lz4 for the reason that the initramfs has it: an
//! emulated processor unpacks it fast, and the file is a quarter longer than with zstd.

use std::fs;
use std::path::Path;

use crate::Error;
use crate::ext4::TIME;
use crate::run::{run, tool};
use crate::tree::{Entry, Tree};

/// Writes the tree to the file `to`. `scratch` is a directory for passing files on.
///
/// # Errors
/// The tool is missing or fails, or a file cannot be read.
pub fn write(tree: &Tree, scratch: &Path, to: &Path) -> Result<(), Error> {
    let list = scratch.join("squashfs.list");
    fs::write(&list, list_of(tree, scratch)?).map_err(Error::write(&list))?;
    let mut command = tool("gensquashfs");
    command
        .arg("--quiet")
        .arg("--force")
        .args(["--compressor", "lz4", "--comp-extra", "hc"])
        .args(["--defaults", &format!("mtime={TIME}")])
        .arg("--pack-file")
        .arg(&list)
        .arg(to);
    run(&mut command, "squashfs-tools-ng")?;
    Ok(())
}

fn list_of(tree: &Tree, scratch: &Path) -> Result<String, Error> {
    let mut list = String::new();
    for (number, (path, entry)) in tree.iter().enumerate() {
        // Neither path nor source has a quote.
        let path = path.replace('\\', "\\\\");
        let line = match entry {
            Entry::Directory(mode) => format!("dir \"/{path}\" 0{mode:o} 0 0\n"),
            Entry::File(mode, content) => {
                let host = content.on_host(scratch, number)?;
                format!("file \"/{path}\" 0{mode:o} 0 0 {host}\n")
            }
            Entry::Link(target) => format!("slink \"/{path}\" 0777 0 0 {target}\n"),
        };
        list.push_str(&line);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::tree::Content;

    #[test]
    fn a_tree_always_becomes_the_same_bytes() {
        let dir = tempfile::tempdir().expect("directory");
        let mut tree = Tree::default();
        let mut put = |path: &str, entry| tree.insert(path, entry).expect("valid");
        put("etc/a file", Entry::File(0o4750, Content::Bytes(b"hello".to_vec())));
        put("etc/empty", Entry::File(0o644, Content::Bytes(Vec::new())));
        // Relative to where the tests run, which is this crate's directory.
        put("etc/relative", Entry::File(0o644, Content::Host("Cargo.toml".into())));
        put("link", Entry::Link("etc/a file".to_owned()));
        put("tmp", Entry::Directory(0o1777));
        let pack = |name: &str| {
            let to = dir.path().join(name);
            write(&tree, dir.path(), &to).expect("written");
            to
        };
        let (first, second) = (pack("one"), pack("two"));
        assert!(fs::read(&first).expect("read") == fs::read(second).expect("read"));
        let mut command = Command::new("sh");
        command.args(["-c", "sqfs2tar \"$1\" | tar -tv", "sh"]).arg(&first);
        let list = run(&mut command, "tar");
        let list = String::from_utf8(list.expect("readable")).expect("text");
        let has = |start: &str, end: &str| {
            list.lines().any(|line| line.starts_with(start) && line.ends_with(end))
        };
        assert!(has("-rwsr-x--- 0/0", "5 2020-01-01 00:00 etc/a file"), "{list}");
        assert!(has("-rw-r--r-- 0/0", "2020-01-01 00:00 etc/relative"), "{list}");
        assert!(has("lrwxrwxrwx 0/0", "link -> etc/a file"), "{list}");
        assert!(has("drwxrwxrwt 0/0", "tmp/"), "{list}");
    }
}
