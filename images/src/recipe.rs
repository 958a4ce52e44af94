//! Recipes: what an image is made of. `docs/images.md` explains the keys for those who write one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use croft_proto::ImageName;
use croft_proto::checked_toml::{Table, read};

use crate::Error;

/// What a recipe makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An image that boots.
    System,
    /// An image with a boot loader and kernel of its own: a whole Debian system.
    Disk,
    /// An image that is a data volume.
    Data,
    /// An archive that system images name; not an image itself.
    Initramfs,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "system" => Ok(Self::System),
            "disk" => Ok(Self::Disk),
            "data" => Ok(Self::Data),
            "initramfs" => Ok(Self::Initramfs),
            _ => Err(format!("{s:?} is not a kind: use system, disk, data or initramfs")),
        }
    }
}

/// What goes into a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Debian packages; their dependencies follow.
    pub packages: Vec<String>,
    /// Files and directories of these packages that the tree has; the libraries of the programs
    /// among them follow.
    pub keep: Vec<String>,
    /// Of a disk image, which has all files of its packages: files and directories that it lacks.
    pub drop: Vec<String>,
    /// Kernel modules to load, in this order; their dependencies come before them.
    pub modules: Vec<String>,
    /// Modules that can wait until the role runs.
    pub modules_later: Vec<String>,
    /// Empty directories.
    pub directories: Vec<String>,
    /// Directories of `overlay/` that are copied over all this.
    pub overlays: Vec<String>,
}

impl Contents {
    fn read(table: &mut Table<'_>) -> Self {
        Self {
            packages: table.list("packages"),
            keep: table.list("keep"),
            drop: table.list("drop"),
            modules: table.list("modules"),
            modules_later: table.list("modules_later"),
            directories: table.list("directories"),
            overlays: table.list("overlays"),
        }
    }

    /// These contents and then `more`.
    pub fn with(mut self, more: &Self) -> Self {
        self.packages.extend_from_slice(&more.packages);
        self.keep.extend_from_slice(&more.keep);
        self.drop.extend_from_slice(&more.drop);
        self.modules.extend_from_slice(&more.modules);
        self.modules_later.extend_from_slice(&more.modules_later);
        self.directories.extend_from_slice(&more.directories);
        self.overlays.extend_from_slice(&more.overlays);
        self
    }
}

/// A recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Its name: that of the file.
    pub name: ImageName,
    /// What it makes.
    pub kind: Kind,
    /// Size of the disk in MiB; 0 for an initramfs.
    pub size_mib: u64,
    /// Packages whose maintainer scripts or services no image runs: they are left out of the
    /// dependencies.
    pub without: BTreeSet<String>,
    /// What goes into it.
    pub contents: Contents,
    /// What its test variant has besides; images without one have no test variant.
    pub test: Option<Contents>,
    /// For an image that boots: the recipe of the initramfs with which Croft boots it.
    pub initramfs: Option<ImageName>,
    /// For an image that boots: arguments that its kernel always needs.
    pub kernel_args: String,
    /// For a system image: whether it can also run from memory.
    pub ram: bool,
}

impl Recipe {
    /// Reads the recipe `name` of a directory of recipes.
    ///
    /// # Errors
    /// There is none, or it is faulty: then every fault is told.
    pub fn load(directory: &Path, name: &ImageName) -> Result<Self, Error> {
        let path = directory.join(format!("{name}.toml"));
        let text = fs::read_to_string(&path).map_err(Error::read(&path))?;
        read(&text, |table| Self::read(name, table))
            .map_err(|faults| Error::Recipe { path, faults })
    }

    fn read(name: &ImageName, table: &mut Table<'_>) -> Option<Self> {
        let kind: Option<Kind> = table.required("kind");
        let size_mib = match kind {
            Some(Kind::Initramfs) => Some(0),
            // Its boot loader's partitions come before the root.
            Some(Kind::Disk) => table.integer("size_mib", 64..=65536),
            _ => table.integer("size_mib", 8..=65536),
        };
        let mut initramfs = None;
        let mut kernel_args = String::new();
        let mut ram = false;
        if matches!(kind, Some(Kind::System | Kind::Disk)) {
            initramfs = table.required("initramfs");
            kernel_args = table.list::<String>("kernel_args").join(" ");
        }
        if kind == Some(Kind::System) {
            ram = table.optional_bool("ram").unwrap_or(false);
        }
        let without = table.list("without").into_iter().collect();
        let contents = Contents::read(table);
        if kind == Some(Kind::Disk) && !contents.keep.is_empty() {
            table.fault("keep", "has no place here: a disk image has all files of its packages");
        }
        if kind.is_some_and(|kind| kind != Kind::Disk) && !contents.drop.is_empty() {
            table.fault("drop", "has no place here: only what `keep` names is in the image");
        }
        let test = table.optional_table("test").map(|mut test| Contents::read(&mut test));
        Some(Self {
            name: name.clone(),
            kind: kind?,
            size_mib: size_mib?,
            without,
            contents,
            test,
            initramfs,
            kernel_args,
            ram,
        })
    }

    /// The variant for tests: the same with more in it, under the name `NAME-test`.
    pub fn test_variant(&self) -> Option<Self> {
        let more = self.test.as_ref()?;
        let name = format!("{}-test", self.name).parse().ok()?;
        Some(Self { name, contents: self.contents.clone().with(more), test: None, ..self.clone() })
    }
}

/// The names of all recipes of a directory, sorted.
///
/// # Errors
/// The directory cannot be read.
pub fn names(directory: &Path) -> Result<Vec<ImageName>, Error> {
    let files = crate::tree::walk(directory)?;
    Ok(files
        .into_iter()
        .filter_map(|(name, _): (String, PathBuf)| name.strip_suffix(".toml")?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Recipe, Error> {
        let dir = tempfile::tempdir().expect("directory");
        fs::write(dir.path().join("web.toml"), text).expect("written");
        Recipe::load(dir.path(), &"web".parse().expect("valid"))
    }

    #[test]
    fn the_test_variant_adds_to_the_contents() {
        let recipe = load(
            "kind = 'system'\nsize_mib = 64\ninitramfs = 'initramfs'\n\
             kernel_args = ['quiet', 'panic=5']\npackages = ['a']\n[test]\npackages = ['b']\n",
        )
        .expect("valid");
        assert_eq!(recipe.kernel_args, "quiet panic=5");
        let test = recipe.test_variant().expect("has one");
        assert_eq!(test.name.as_str(), "web-test");
        assert_eq!(test.contents.packages, ["a", "b"]);
        assert!(test.test_variant().is_none());
    }

    #[test]
    fn every_fault_is_told() {
        let fault = load("kind = 'data'\npackage = ['a']\nkernel_args = ['x']\n");
        let text = fault.expect_err("faulty").to_string();
        for key in ["size_mib", "package", "kernel_args"] {
            assert!(text.contains(key), "{text}");
        }
        assert!(load("kind = 'disk'\nsize_mib = 1").is_err());
    }
}
