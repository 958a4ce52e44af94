//! What can go wrong while an image is built.

use std::path::PathBuf;

use croft_proto::checked_toml::Faults;

/// A failed step of a build: what was being done, to what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file or directory could not be written.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A recipe is faulty.
    #[error("{path} is faulty:\n{faults}")]
    Recipe {
        /// The recipe.
        path: PathBuf,
        /// All that is wrong with it.
        faults: Faults,
    },
    /// A tool could not be started.
    #[error("cannot start {program}; install the Debian package {package}")]
    Start {
        /// The tool.
        program: String,
        /// The package that has it.
        package: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool failed.
    #[error("{command} failed: {output}")]
    Tool {
        /// The command line.
        command: String,
        /// The end of what it printed.
        output: String,
    },
    /// apt does not know a package.
    #[error(
        "apt knows no package {name}, which {wanted_by} needs; run `apt-get update` as root, or \
         correct the recipe"
    )]
    UnknownPackage {
        /// The package.
        name: String,
        /// The recipe or package that names it.
        wanted_by: String,
    },
    /// A downloaded package is not what the package lists say.
    #[error("package {name} does not have the SHA-256 of the package lists; run `apt-get update`")]
    WrongPackage {
        /// The package.
        name: String,
    },
    /// What a recipe keeps is in none of its packages.
    #[error("{path}, which {wanted_by} needs, is in no package of the recipe; add the package")]
    NotInPackages {
        /// The path.
        path: String,
        /// The recipe, program or module.
        wanted_by: String,
    },
    /// A program is not what the builder can read.
    #[error("{path} is not a 64-bit little-endian ELF file that can be read: {fault}")]
    Elf {
        /// The file.
        path: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Something is too large for its place on a disk.
    #[error(
        "{what} does not fit into its place on the disk; give the recipe a smaller size_mib, or correct the packages"
    )]
    NoRoom {
        /// What.
        what: String,
    },
    /// The agent would not start in an image.
    #[error(
        "the agent {path} is not a static program: build it with `-C target-feature=+crt-static`"
    )]
    DynamicAgent {
        /// The file.
        path: PathBuf,
    },
    /// A name that is neither a recipe's nor a test variant's.
    #[error("there is no recipe for image {name}; these can be built: {known}")]
    UnknownImage {
        /// The name.
        name: String,
        /// What there is.
        known: String,
    },
    /// A path that no image can hold.
    #[error("{path:?} cannot be a path in an image: it has a quote, a newline, or leaves the tree")]
    UnusablePath {
        /// The path.
        path: String,
    },
}

impl Error {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Write { path, source }
    }
}
