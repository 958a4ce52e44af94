//! Writes cpio archives in the format that the kernel unpacks (`Documentation/driver-api/
//! early-userspace/buffer-format.rst`: "newc").
//!
//! ```text
//! header   6 bytes magic "070701", then 13 fields of 8 hex digits: inode, mode, uid, gid, links,
//!          mtime, size, device (2), special device (2), length of name with its NUL, checksum
//! name     with NUL, padded so that what follows starts at a multiple of 4
//! data     padded to a multiple of 4
//! …        the last entry is named TRAILER!!!
//! ```
//!
//! Inodes are numbered in the order of the tree, all times are 0, all owners root.

use crate::Error;
use crate::tree::{Entry, Tree};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// The archive of a tree; its length is a multiple of 512.
///
/// # Errors
/// A file of the host cannot be read, or is longer than the format can say.
pub fn archive(tree: &Tree) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    for (number, (path, entry)) in (1..).zip(tree.iter()) {
        let (mode, data) = match entry {
            Entry::Directory(mode) => (DIRECTORY | u32::from(*mode), Vec::new()),
            Entry::File(mode, content) => (FILE | u32::from(*mode), content.bytes()?),
            Entry::Link(target) => (LINK | 0o777, target.clone().into_bytes()),
        };
        append(&mut out, number, mode, path, &data)?;
    }
    append(&mut out, 0, 0, "TRAILER!!!", &[])?;
    pad(&mut out, 512);
    Ok(out)
}

fn append(out: &mut Vec<u8>, inode: u32, mode: u32, name: &str, data: &[u8]) -> Result<(), Error> {
    let too_long = |_| Error::UnusablePath { path: name.chars().take(200).collect() };
    let size = u32::try_from(data.len()).map_err(too_long)?;
    let name_size = u32::try_from(name.len() + 1).map_err(too_long)?;
    out.extend_from_slice(b"070701");
    for field in [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(data);
    pad(out, 4);
    Ok(())
}

/// Appends zeros up to a multiple of `to`.
pub fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::run::run_with;
    use crate::tree::Content;

    fn tree() -> Tree {
        let mut tree = Tree::default();
        let put = |tree: &mut Tree, path: &str, entry| tree.insert(path, entry).expect("valid");
        put(&mut tree, "b/file", Entry::File(0o640, Content::Bytes(b"abc".to_vec())));
        put(&mut tree, "a", Entry::Link("b/file".to_owned()));
        tree
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let archive = archive(&tree()).expect("archive");
        let header = |inode: u32, mode: u32, size: u32, name_size: u32| {
            format!(
                "070701{inode:08x}{mode:08x}{z}{z}00000001{z}{size:08x}{z}{z}{z}{z}\
                 {name_size:08x}{z}",
                z = "00000000"
            )
        };
        let mut want = Vec::new();
        want.extend(header(1, 0o120_777, 6, 2).bytes().chain(*b"a\0"));
        want.extend(b"b/file\0\0");
        want.extend(header(2, 0o040_755, 0, 2).bytes().chain(*b"b\0"));
        want.extend(header(3, 0o100_640, 3, 7).bytes().chain(*b"b/file\0\0\0\0"));
        want.extend(b"abc\0");
        assert_eq!(&archive[..want.len()], want);
        assert_eq!(archive.len() % 512, 0);
    }

    #[test]
    fn cpio_lists_what_was_put_in() {
        let archive = archive(&tree()).expect("archive");
        let list = run_with(Command::new("cpio").args(["-it", "--quiet"]), "cpio", Some(archive));
        assert_eq!(String::from_utf8_lossy(&list.expect("readable")), "a\nb\nb/file\n");
    }
}
