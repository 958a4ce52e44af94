//! Builds Croft's images from Debian packages, without root.
//!
//! A recipe (`recipes/NAME.toml`) names packages, the files to keep of them, kernel modules and
//! overlay directories. The builder resolves the packages with apt, unpacks them, and collects a
//! [`tree::Tree`]: paths, modes and contents, everything owned by root. A tree becomes an ext4
//! disk or a cpio archive; both are a pure function of the tree, so that the same inputs give the
//! same bytes and therefore the same image version. Nothing is run as root and nothing is mounted.
//!
//! The rooms, from the bottom up: [`elf`] reads what a program needs, [`cpio`], [`ext4`] and
//! [`squashfs`] write archives and disks, [`packages`] fetches and unpacks, [`recipe`] reads recipes, [`gather`]
//! turns a recipe into a tree, [`store`] keeps finished images, [`build`] does it all in order.

#![forbid(unsafe_code)]

pub mod build;
pub mod cpio;
pub mod disk;
pub mod elf;
mod error;
pub mod ext4;
pub mod gather;
pub mod host;
pub mod modules;
pub mod packages;
pub mod recipe;
mod run;
pub mod squashfs;
pub mod store;
pub mod tree;

pub use error::Error;
