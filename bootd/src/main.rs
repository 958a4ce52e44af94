//! `croft-bootd`: see the library's first page.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use croft_bootd::{Config, TargetArgs};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit status for a configuration that cannot be used (sysexits.h, EX_USAGE).
const BAD_CONFIG: u8 = 64;

/// Boot server of a Croft site: DHCP, TFTP, HTTP and iSCSI for diskless nodes.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT.
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Serve one volume as an open iSCSI target, for conformance runs and measurements.
    Target(TargetArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match arguments.command {
        Command::Run { config } => match Config::load(&config) {
            Ok(config) => {
                finish(until_signal(async |stop| Ok(croft_bootd::run(config, stop).await?)))
            }
            Err(error) => {
                let error = anyhow::Error::new(error);
                eprintln!("croft-bootd: {error:#}");
                ExitCode::from(BAD_CONFIG)
            }
        },
        Command::Target(arguments) => {
            finish(until_signal(async |stop| Ok(croft_bootd::run_target(arguments, stop).await?)))
        }
    }
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croft-bootd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until SIGTERM or SIGINT, and then until the run has shut itself down.
fn until_signal(
    run: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start threads")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        let mut run = Box::pin(run(stop.clone()));
        loop {
            tokio::select! {
                result = &mut run => return result,
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
            }
        }
    })
}
