//! Reads from ELF files what else they need: a program's loader and libraries (System V ABI
//! chapters 4 and 5), a kernel module's dependencies.
//!
//! The files come out of Debian packages; still nothing here panics, whatever the bytes.

use std::collections::BTreeSet;

/// What a program or library needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Path of the loader, if there is one.
    pub loader: Option<String>,
    /// Names of libraries, in the order of the file.
    pub libraries: Vec<String>,
}

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// Whether the bytes start like an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// A little-endian number of `size` bytes at `at`.
fn number(bytes: &[u8], at: u64, size: usize) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// The text from `at` to the next NUL.
fn text(bytes: &[u8], at: u64) -> Option<String> {
    let rest = bytes.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    String::from_utf8(rest[..end].to_vec()).ok()
}

fn class_64_little(bytes: &[u8]) -> Option<()> {
    (is_elf(bytes) && bytes.get(4..6)? == [2, 1]).then_some(())
}

/// What a program or library needs; nothing for a static one. `None` if the file is not of this
/// format.
pub fn needs(bytes: &[u8]) -> Option<Needs> {
    class_64_little(bytes)?;
    let table = number(bytes, 32, 8)?;
    let size = number(bytes, 54, 2)?;
    let count = number(bytes, 56, 2)?;
    let mut loads = Vec::new();
    let mut dynamic = None;
    let mut needs = Needs::default();
    for index in 0..count {
        let header = table.checked_add(index * size)?;
        let field = |at| number(bytes, header.checked_add(at)?, 8);
        let (offset, address, length) = (field(8)?, field(16)?, field(32)?);
        match number(bytes, header, 4)? {
            PT_LOAD => loads.push((offset, address, length)),
            PT_DYNAMIC => dynamic = Some((offset, length)),
            PT_INTERP => needs.loader = Some(text(bytes, offset)?),
            _ => {}
        }
    }
    let Some((start, length)) = dynamic else { return Some(needs) };
    let mut names = Vec::new();
    let mut strings = None;
    for index in 0..length / 16 {
        let at = start.checked_add(index * 16)?;
        let value = number(bytes, at.checked_add(8)?, 8)?;
        match number(bytes, at, 8)? {
            0 => break,
            DT_NEEDED => names.push(value),
            DT_STRTAB => strings = Some(value),
            _ => {}
        }
    }
    // The string table is given by its address in memory.
    let strings = match strings {
        None => return Some(needs),
        Some(address) => loads.iter().find_map(|(offset, start, length)| {
            let within = address.checked_sub(*start).filter(|within| within < length)?;
            offset.checked_add(within)
        })?,
    };
    for name in names {
        needs.libraries.push(text(bytes, strings.checked_add(name)?)?);
    }
    Some(needs)
}

/// A program without what is never loaded: its symbols and debugging information, often most of it.
/// Compilers put these behind all that is loaded; the file ends before them, and its header no
/// longer speaks of sections. `None` if the file is not of this format.
pub fn loaded_part(bytes: &[u8]) -> Option<Vec<u8>> {
    class_64_little(bytes)?;
    let table = number(bytes, 32, 8)?;
    let size = number(bytes, 54, 2)?;
    let count = number(bytes, 56, 2)?;
    let mut end = table.checked_add(size * count)?;
    for index in 0..count {
        let header = table.checked_add(index * size)?;
        let offset = number(bytes, header.checked_add(8)?, 8)?;
        end = end.max(offset.checked_add(number(bytes, header.checked_add(32)?, 8)?)?);
    }
    let mut part = bytes.get(..usize::try_from(end).ok()?)?.to_vec();
    part.get_mut(40..48)?.fill(0); // offset of the section table
    part.get_mut(60..64)?.fill(0); // sections, and which of them has their names
    Some(part)
}

/// The modules that a kernel module must find loaded, from its `.modinfo` section. `None` if the
/// file is not of this format.
pub fn module_dependencies(bytes: &[u8]) -> Option<BTreeSet<String>> {
    class_64_little(bytes)?;
    let table = number(bytes, 40, 8)?;
    let size = number(bytes, 58, 2)?;
    let count = number(bytes, 60, 2)?;
    let names = number(bytes, 62, 2)?;
    let field = |index: u64, at: u64, length: usize| {
        number(bytes, table.checked_add(index * size)?.checked_add(at)?, length)
    };
    let strings = field(names, 24, 8)?;
    for index in 0..count {
        let name = strings.checked_add(field(index, 0, 4)?)?;
        if text(bytes, name)? != ".modinfo" {
            continue;
        }
        let start = usize::try_from(field(index, 24, 8)?).ok()?;
        let length = usize::try_from(field(index, 32, 8)?).ok()?;
        let section = bytes.get(start..start.checked_add(length)?)?;
        let lists = section.split(|b| *b == 0).filter_map(|line| line.strip_prefix(b"depends="));
        return Some(
            lists
                .flat_map(|list| list.split(|b| *b == b','))
                .filter(|name| !name.is_empty())
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect(),
        );
    }
    Some(BTreeSet::new())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_dynamic_program_names_its_loader_and_libc() {
        let own = std::fs::read(std::env::current_exe().expect("path")).expect("readable");
        let needs = needs(&own).expect("an ELF file");
        assert_eq!(needs.loader.as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert!(needs.libraries.iter().any(|name| name == "libc.so.6"), "{needs:?}");
    }

    #[test]
    fn a_program_runs_without_what_is_not_loaded() {
        use std::os::unix::fs::PermissionsExt;

        let whole = std::fs::read("/bin/busybox").expect("readable");
        let mut padded = whole.clone();
        padded.extend([7; 1 << 20]);
        let part = loaded_part(&padded).expect("an ELF file");
        assert!(part.len() <= whole.len());
        let dir = tempfile::tempdir().expect("directory");
        let program = dir.path().join("busybox");
        std::fs::write(&program, part).expect("written");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("set");
        let output = std::process::Command::new(program).args(["echo", "hello"]).output();
        assert_eq!(output.expect("starts").stdout, b"hello\n");
    }

    #[test]
    fn other_files_are_not_read() {
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        assert_eq!(needs(b"\x7fELF\x01\x01"), None);
        assert_eq!(module_dependencies(b"\x7fELF"), None);
    }

    proptest! {
        #[test]
        fn spoilt_files_never_panic(
            spoil in proptest::collection::vec((0usize..4096, any::<u8>()), 1..40),
            length in 0usize..8192,
        ) {
            let mut bytes = vec![0; length];
            bytes[..length.min(6)].copy_from_slice(&b"\x7fELF\x02\x01"[..length.min(6)]);
            for (at, byte) in spoil {
                if let Some(place) = bytes.get_mut(at.max(6)) {
                    *place = byte;
                }
            }
            let _ = needs(&bytes);
            let _ = loaded_part(&bytes);
            let _ = module_dependencies(&bytes);
        }
    }
}
