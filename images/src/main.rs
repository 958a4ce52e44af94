//! The command `croft-images`.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use croft_images::build::{Workshop, build};
use croft_proto::ImageName;

/// Builds Croft's images from Debian packages, without root.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Builds images into a store and prints `NAME VERSION` for each.
    Build {
        /// The image store, made if need be.
        #[arg(long, value_name = "DIR")]
        store: PathBuf,
        /// The node agent, a static program.
        #[arg(long, value_name = "PROGRAM")]
        agent: PathBuf,
        /// Where fetched packages are kept [default: ~/.cache/croft/packages].
        #[arg(long, value_name = "DIR")]
        packages_cache: Option<PathBuf>,
        /// Directory with `recipes/` and `overlay/`.
        #[arg(long, value_name = "DIR", default_value = env!("CARGO_MANIFEST_DIR"))]
        sources: PathBuf,
        /// Also builds the variants that tests boot: they have a root shell.
        #[arg(long)]
        test: bool,
        /// The images; all if none is named.
        names: Vec<ImageName>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croft-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Action::Build { store, agent, packages_cache, sources, test, names } = arguments.command;
    let packages_cache = match packages_cache {
        Some(directory) => directory,
        None => default_cache().context("there is no home directory: give --packages-cache")?,
    };
    let shop = Workshop { sources, packages_cache, agent, test };
    build(&shop, &store, &names, |name, version| println!("{name} {version}"))?;
    Ok(())
}

fn default_cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join("croft/packages"))
}
