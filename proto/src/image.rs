//! Images: what a manifest says, and where its files lie in an image store.
//!
//! An image store is a directory that any number of programs may read while one adds to it:
//!
//! ```text
//! blobs/HASH            a file's bytes; HASH is their BLAKE3 in 64 hex digits
//! manifests/HASH.json   a manifest; HASH is the BLAKE3 of these bytes: the image's version
//! names/NAME            the version that NAME points to now, 64 hex digits and a newline
//! ```
//!
//! Blobs are written first, then the manifest, then the name, each to a temporary name in the same
//! directory, synced and renamed: whoever sees a name finds everything below it. Nothing is
//! changed after that; a new build is a new version.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::BootMethod;
use crate::ImageName;

/// Bytes that one chunk hash of a disk covers.
pub const CHUNK_SIZE: u64 = 1 << 20;

/// Why bytes are not a usable manifest, or text not a hash.
#[derive(Debug, thiserror::Error)]
pub enum InvalidImage {
    /// Not 64 lower-case hex digits.
    #[error("{0:?} is not an image hash: 64 lower-case hex digits are")]
    Hash(String),
    /// Not the JSON of a manifest.
    #[error("the manifest cannot be read; build or import the image again")]
    Json(#[source] serde_json::Error),
    /// A manifest that contradicts itself.
    #[error("the manifest of image {name} is not usable: {fault}; build or import it again")]
    Manifest {
        /// The image.
        name: ImageName,
        /// What is wrong.
        fault: String,
    },
}

macro_rules! hashes {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(blake3_bytes::Bytes);

        impl $name {
            /// Of these bytes.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// From a hasher's result.
            pub fn from_hash(hash: blake3::Hash) -> Self {
                Self(*hash.as_bytes())
            }

            /// The first 12 hex digits, for tables.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl FromStr for $name {
            type Err = InvalidImage;
            fn from_str(s: &str) -> Result<Self, InvalidImage> {
                let lower = s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                match blake3::Hash::from_hex(s) {
                    Ok(hash) if lower => Ok(Self(*hash.as_bytes())),
                    _ => Err(InvalidImage::Hash(s.chars().take(80).collect())),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidImage;
            fn try_from(s: String) -> Result<Self, InvalidImage> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(hash: $name) -> Self {
                hash.to_string()
            }
        }
    )*};
}

mod blake3_bytes {
    pub type Bytes = [u8; 32];
}

hashes! {
    /// An image's version: the BLAKE3 of its manifest.
    ImageVersion;
    /// A file of an image: the BLAKE3 of its bytes.
    BlobHash;
}

/// What an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageKind {
    /// `kernel`, `initrd` and `disk`, a file system: a node boots it. With `root`, the same files as
    /// squashfs, also from memory.
    System,
    /// The same with a `disk` that has a partition table, a boot loader and a system with a kernel of
    /// its own, in a partition: a node boots it with or without these.
    Disk,
    /// `disk` only: shared data.
    Data,
}

impl ImageKind {
    /// The files that it has, and those that it may have.
    fn files(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::System => (&["disk", "initrd", "kernel"], &["root"]),
            Self::Disk => (&["disk", "initrd", "kernel"], &[]),
            Self::Data => (&["disk"], &[]),
        }
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::System => "system",
            Self::Disk => "disk",
            Self::Data => "data",
        })
    }
}

/// One file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Length in bytes.
    pub size: u64,
    /// Its name in `blobs/`.
    pub blob: BlobHash,
    /// For `disk`: the BLAKE3 of each [`CHUNK_SIZE`] bytes, the last chunk shorter if the size is
    /// no multiple. Empty for other files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<BlobHash>,
}

/// What an image consists of. Its canonical JSON is what the version is the hash of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: 1.
    pub format: u32,
    /// The name under which it was built.
    pub name: ImageName,
    /// What it is for.
    pub kind: ImageKind,
    /// By name: `kernel`, `initrd`, `disk` and `root`, as the kind demands.
    pub files: BTreeMap<String, ImageFile>,
    /// Arguments that the image's kernel always needs.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_args: String,
}

impl Manifest {
    /// The bytes that are stored, and whose hash is the version: the same for equal manifests.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A struct of strings, integers and maps with string keys always serialises.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The image's version.
    pub fn version(&self) -> ImageVersion {
        ImageVersion::of(&self.to_bytes())
    }

    /// Reads and checks a manifest.
    ///
    /// # Errors
    /// Not JSON of this shape, another format, a missing or superfluous file, or a chunk list that
    /// does not fit the disk's size.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidImage> {
        let manifest: Self = serde_json::from_slice(bytes).map_err(InvalidImage::Json)?;
        let fault = |fault: String| InvalidImage::Manifest { name: manifest.name.clone(), fault };
        if manifest.format != 1 {
            return Err(fault(format!("its format is {}, this program reads 1", manifest.format)));
        }
        let (want, may) = manifest.kind.files();
        let has = |name: &&str| manifest.files.contains_key(*name);
        let known = |name: &String| want.contains(&name.as_str()) || may.contains(&name.as_str());
        if !want.iter().all(has) || !manifest.files.keys().all(known) {
            let kind = manifest.kind;
            return Err(fault(format!(
                "a {kind} image has the files {want:?}, and may have {may:?}"
            )));
        }
        let disk = &manifest.files["disk"];
        if disk.size == 0 || !disk.size.is_multiple_of(4096) {
            return Err(fault(format!("its disk of {} bytes is no multiple of 4096", disk.size)));
        }
        if disk.size.div_ceil(CHUNK_SIZE) != disk.chunks.len() as u64 {
            return Err(fault(format!("{} chunks do not cover its disk", disk.chunks.len())));
        }
        Ok(manifest)
    }

    /// The methods by which a node can boot it.
    pub fn boots(&self) -> Vec<BootMethod> {
        let mut methods = Vec::new();
        if self.files.contains_key("kernel") {
            methods.push(BootMethod::Iscsi);
        }
        if self.kind == ImageKind::Disk {
            methods.push(BootMethod::San);
        }
        if self.files.contains_key("root") {
            methods.push(BootMethod::Ram);
        }
        methods
    }

    /// Checks that a node can boot it by this method. One that goes on to the next boot device needs
    /// nothing of an image.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_boot(&self, method: BootMethod) -> Result<(), CannotBoot> {
        let image = self.name.clone();
        let can = method == BootMethod::Local || self.boots().contains(&method);
        if can { Ok(()) } else { Err(CannotBoot { image, method }) }
    }

    /// Its disk; every checked manifest has one.
    pub fn disk(&self) -> &ImageFile {
        &self.files["disk"]
    }
}

/// An image lacks what a boot method needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image {image} {}", lack(*.method))]
pub struct CannotBoot {
    /// The image.
    pub image: ImageName,
    /// The method.
    pub method: BootMethod,
}

/// What is missing, and what to do about it.
fn lack(method: BootMethod) -> &'static str {
    match method {
        BootMethod::Ram => {
            "has no root file system for memory: set `ram = true` in its recipe and build it \
             again, or use boot = \"iscsi\""
        }
        BootMethod::San => {
            "has no boot loader on its disk: build one of kind disk, or use boot = \"iscsi\""
        }
        BootMethod::Iscsi | BootMethod::Local => {
            "has no kernel and initrd: use one of kind system or disk"
        }
    }
}

/// Which image: the newest version of a name, or one version for ever, written `NAME@VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// The name.
    pub name: ImageName,
    /// The version, if it is fixed.
    pub version: Option<ImageVersion>,
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl FromStr for ImageRef {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let (name, version) = match s.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (s, None),
        };
        Ok(Self {
            name: name.parse().map_err(|e| format!("{e}"))?,
            version: version.map(str::parse).transpose().map_err(|e| format!("{e}"))?,
        })
    }
}

impl TryFrom<String> for ImageRef {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Manifest {
        let disk =
            ImageFile { size: 4096, blob: BlobHash::of(b"x"), chunks: vec![BlobHash::of(b"x")] };
        Manifest {
            format: 1,
            name: "content".parse().expect("valid"),
            kind: ImageKind::Data,
            files: BTreeMap::from([("disk".to_owned(), disk)]),
            kernel_args: String::new(),
        }
    }

    #[test]
    fn a_manifest_reads_back_and_keeps_its_version() {
        let manifest = data();
        let back = Manifest::from_bytes(&manifest.to_bytes()).expect("valid");
        assert_eq!(back, manifest);
        assert_eq!(back.version(), manifest.version());
        assert_eq!(manifest.version().to_string().parse().ok(), Some(manifest.version()));
    }

    #[test]
    fn an_image_boots_by_what_it_has() {
        let mut manifest = data();
        assert_eq!(manifest.boots(), []);
        let file = ImageFile { size: 9, blob: BlobHash::of(b"y"), chunks: Vec::new() };
        manifest.kind = ImageKind::System;
        for name in ["kernel", "initrd"] {
            manifest.files.insert(name.to_owned(), file.clone());
        }
        let read = |m: &Manifest| Manifest::from_bytes(&m.to_bytes()).expect("valid");
        assert_eq!(read(&manifest).boots(), [BootMethod::Iscsi]);
        manifest.kind = ImageKind::Disk;
        assert_eq!(read(&manifest).boots(), [BootMethod::Iscsi, BootMethod::San]);
        manifest.kind = ImageKind::System;
        assert!(manifest.check_boot(BootMethod::San).is_err());
        let fault = manifest.check_boot(BootMethod::Ram).expect_err("no root").to_string();
        assert!(fault.contains("image content") && fault.contains("ram = true"), "{fault}");
        manifest.files.insert("root".to_owned(), file);
        assert_eq!(read(&manifest).boots(), [BootMethod::Iscsi, BootMethod::Ram]);
        assert_eq!(manifest.check_boot(BootMethod::Local), Ok(()));
    }

    #[test]
    fn manifests_that_contradict_themselves_are_refused() {
        let spoil = |f: fn(&mut Manifest)| {
            let mut manifest = data();
            f(&mut manifest);
            Manifest::from_bytes(&manifest.to_bytes())
        };
        assert!(spoil(|m| m.format = 2).is_err());
        assert!(spoil(|m| m.kind = ImageKind::System).is_err());
        let fault = spoil(|m| m.kind = ImageKind::System).expect_err("no kernel").to_string();
        assert!(fault.contains("may have [\"root\"]"), "{fault}");
        assert!(spoil(|m| m.files.get_mut("disk").expect("disk").chunks.clear()).is_err());
        assert!(spoil(|m| m.files.get_mut("disk").expect("disk").size = 5000).is_err());
        assert!(Manifest::from_bytes(b"{}").is_err());
    }
}
