//! The files of an image before they become an archive or a disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::Error;

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In a file of the building machine.
    Host(PathBuf),
    /// Here.
    Bytes(Vec<u8>),
}

impl Content {
    /// The bytes.
    ///
    /// # Errors
    /// The host's file cannot be read.
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Host(path) => fs::read(path).map_err(Error::read(path)),
            Self::Bytes(bytes) => Ok(bytes.clone()),
        }
    }

    /// A file of the host with these bytes, by a name that can stand in quotes: made as
    /// `scratch/file-NUMBER` if there is none.
    ///
    /// # Errors
    /// It cannot be written, or its name has a quote.
    pub(crate) fn on_host(&self, scratch: &Path, number: usize) -> Result<String, Error> {
        let host = match self {
            // A list of files may be read from another directory than this one.
            Self::Host(path) => std::path::absolute(path).map_err(Error::read(path))?,
            Self::Bytes(bytes) => {
                let path = scratch.join(format!("file-{number}"));
                fs::write(&path, bytes).map_err(Error::write(&path))?;
                path
            }
        };
        let host = host.to_string_lossy();
        if host.contains('"') {
            return Err(Error::UnusablePath { path: host.into_owned() });
        }
        Ok(host.into_owned())
    }
}

/// What a path of a tree is. Everything belongs to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory with these permission bits.
    Directory(u16),
    /// A file with these permission bits.
    File(u16, Content),
    /// A symbolic link.
    Link(String),
}

/// Paths without a leading slash, in byte order: a directory always comes before what is in it.
///
/// Debian's packages still use `/bin`, `/sbin` and `/lib`; a tree has these only as links into
/// `/usr`, so that a file has one path whichever name its package gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

/// The top directories that are links into `/usr`.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

impl Tree {
    /// A tree that has nothing but the links into `/usr`.
    pub fn merged_usr() -> Self {
        let mut tree = Self::default();
        for name in MERGED {
            tree.entries.insert(format!("usr/{name}"), Entry::Directory(0o755));
            tree.entries.insert(name.to_owned(), Entry::Link(format!("usr/{name}")));
        }
        tree.entries.insert("usr".to_owned(), Entry::Directory(0o755));
        tree
    }

    /// Entries in the order in which they can be made.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// What is at `path`.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts an entry at `path` and the directories above it, replacing what was there.
    ///
    /// # Errors
    /// A path that leaves the tree, or that the tools which make disks could misread.
    pub fn insert(&mut self, path: &str, entry: Entry) -> Result<(), Error> {
        let path = clean(path)?;
        for (at, _) in path.match_indices('/') {
            let above = &path[..at];
            if !matches!(self.entries.get(above), Some(Entry::Directory(_))) {
                self.entries.insert(above.to_owned(), Entry::Directory(0o755));
            }
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    /// Adds a directory of the host with all that is in it. Only the executable bit of its files
    /// counts: the other bits depend on whose checkout it is.
    ///
    /// # Errors
    /// Something cannot be read, or has an unusable name.
    pub fn overlay(&mut self, from: &Path) -> Result<(), Error> {
        for (path, host) in walk(from)? {
            let data = fs::symlink_metadata(&host).map_err(Error::read(&host))?;
            let entry = if data.is_dir() {
                // One that is there keeps its mode; a link into /usr stays one.
                if matches!(self.entries.get(&clean(&path)?), Some(Entry::Directory(_)))
                    || MERGED.contains(&path.as_str())
                {
                    continue;
                }
                Entry::Directory(0o755)
            } else if data.is_symlink() {
                link(&host)?
            } else {
                let executable = data.permissions().mode() & 0o100 != 0;
                Entry::File(if executable { 0o755 } else { 0o644 }, Content::Host(host))
            };
            self.insert(&path, entry)?;
        }
        Ok(())
    }
}

/// A file, link or directory of an unpacked package as an entry, with its own permission bits.
///
/// # Errors
/// It cannot be read.
pub fn entry_of(host: &Path) -> Result<Entry, Error> {
    let data = fs::symlink_metadata(host).map_err(Error::read(host))?;
    if data.is_symlink() {
        return link(host);
    }
    let mode = u16::try_from(data.permissions().mode() & 0o7777).unwrap_or(0o644);
    if data.is_dir() {
        Ok(Entry::Directory(mode))
    } else {
        Ok(Entry::File(mode, Content::Host(host.to_owned())))
    }
}

fn link(host: &Path) -> Result<Entry, Error> {
    let target = fs::read_link(host).map_err(Error::read(host))?;
    Ok(Entry::Link(target.to_string_lossy().into_owned()))
}

/// Everything below a directory, as paths within it and on the host, sorted.
///
/// # Errors
/// A directory cannot be read.
pub fn walk(top: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), top.to_owned())];
    while let Some((prefix, directory)) = open.pop() {
        for entry in fs::read_dir(&directory).map_err(Error::read(&directory))? {
            let entry = entry.map_err(Error::read(&directory))?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(Error::read(entry.path()))?;
            if kind.is_dir() {
                open.push((format!("{path}/"), entry.path()));
            }
            found.push((path, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Without leading slash and `.` parts, and within `/usr` where that is merged.
///
/// # Errors
/// See [`Error::UnusablePath`].
pub fn clean(path: &str) -> Result<String, Error> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    let bad = parts.is_empty()
        || parts.contains(&"..")
        || path.bytes().any(|b| b == b'"' || b.is_ascii_control());
    if bad {
        return Err(Error::UnusablePath { path: path.chars().take(200).collect() });
    }
    let merged = parts.len() > 1 && MERGED.contains(&parts[0]);
    Ok(if merged { format!("usr/{}", parts.join("/")) } else { parts.join("/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr_and_cannot_leave_the_tree() {
        assert_eq!(clean("/bin/sh").expect("valid"), "usr/bin/sh");
        assert_eq!(clean("./sbin//init").expect("valid"), "usr/sbin/init");
        assert_eq!(clean("srv/data").expect("valid"), "srv/data");
        for bad in ["", "/", "../etc", "a/../../b", "a\nb", "a\"b"] {
            assert!(clean(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn directories_come_before_their_files() {
        let mut tree = Tree::merged_usr();
        tree.insert("a/b/c", Entry::Link("x".to_owned())).expect("valid");
        tree.insert("/sbin/init", Entry::Link("busybox".to_owned())).expect("valid");
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            [
                "a",
                "a/b",
                "a/b/c",
                "bin",
                "lib",
                "lib64",
                "sbin",
                "usr",
                "usr/bin",
                "usr/lib",
                "usr/lib64",
                "usr/sbin",
                "usr/sbin/init"
            ]
        );
    }

    #[test]
    fn an_overlay_counts_only_executable_bits_and_replaces() {
        let host = tempfile::tempdir().expect("directory");
        std::fs::create_dir(host.path().join("etc")).expect("made");
        let script = host.path().join("etc/run");
        std::fs::write(&script, "#!").expect("written");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o700)).expect("set");
        let mut tree = Tree::default();
        tree.insert("etc", Entry::Directory(0o700)).expect("valid");
        tree.insert("etc/run", Entry::Link("old".to_owned())).expect("valid");
        std::fs::create_dir(host.path().join("sbin")).expect("made");
        std::fs::write(host.path().join("sbin/init"), "#!").expect("written");
        tree.overlay(host.path()).expect("readable");
        assert_eq!(tree.get("sbin"), None, "the directory came in beside /usr/sbin");
        assert!(tree.get("usr/sbin/init").is_some());
        assert_eq!(tree.get("etc"), Some(&Entry::Directory(0o700)));
        assert_eq!(tree.get("etc/run"), Some(&Entry::File(0o755, Content::Host(script))));
    }
}
