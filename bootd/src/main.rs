//! `croft-bootd`: see the library's first page.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use croft_bootd::{CaptureArgs, Config, ExplainArgs, Reload, TargetArgs, VolumeArgs};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit status for a configuration that cannot be used (sysexits.h, EX_USAGE).
const BAD_CONFIG: u8 = 64;

/// Boot server: DHCP, TFTP, HTTP and iSCSI for diskless machines.
///
/// With --config it serves until SIGTERM or SIGINT: what control says if the file has an [edge], and
/// what the file's own rules say otherwise. SIGHUP reads such a file again.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    /// The configuration file.
    #[arg(long, required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a machine's boot packets, without their secrets, as a pcapng file.
    Capture(CaptureArgs),
    /// Check a configuration file and say all that is wrong with it; exit status 64 if anything is.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Say what a machine would get from a file, and which line says so.
    Explain(ExplainArgs),
    /// Serve one volume as an open iSCSI target, for conformance runs and measurements.
    Target(TargetArgs),
    /// Look at a volume store that no bootd uses, check it, move volumes in and out.
    Volume(VolumeArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match (arguments.command, arguments.config) {
        (None, Some(path)) => match Config::load(&path) {
            Ok(config) => {
                let reload = Reload { path, signal: Arc::default() };
                let signal = Arc::clone(&reload.signal);
                finish(until_signal(&signal, async |stop| {
                    Ok(croft_bootd::run(config, reload, stop).await?)
                }))
            }
            Err(error) => refuse(error),
        },
        (None, None) => refuse(anyhow::anyhow!("give --config FILE")),
        (Some(Command::Check { file }), _) => match Config::load(&file) {
            Ok(config) => {
                println!("{} is good: {}", file.display(), config.summary());
                ExitCode::SUCCESS
            }
            Err(error) => refuse(error),
        },
        (Some(Command::Explain(arguments)), _) => match croft_bootd::run_explain(&arguments) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => refuse(error),
        },
        (Some(Command::Volume(arguments)), _) => {
            let mut out = std::io::stdout().lock();
            finish(croft_bootd::run_volume(arguments, &mut out).map_err(Into::into))
        }
        (Some(Command::Capture(arguments)), _) => {
            let nobody = Notify::new();
            finish(until_signal(&nobody, async |stop| {
                Ok(croft_bootd::run_capture(arguments, stop).await?)
            }))
        }
        (Some(Command::Target(arguments)), _) => {
            let nobody = Notify::new();
            finish(until_signal(&nobody, async |stop| {
                Ok(croft_bootd::run_target(arguments, stop).await?)
            }))
        }
    }
}

fn refuse(error: impl Into<anyhow::Error>) -> ExitCode {
    eprintln!("croft-bootd: {:#}", error.into());
    ExitCode::from(BAD_CONFIG)
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

/// Runs until SIGTERM or SIGINT, and then until the run has shut itself down. `reload` is notified at
/// each SIGHUP.
fn until_signal(
    reload: &Notify,
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
        let mut hang_up = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
        let mut run = Box::pin(run(stop.clone()));
        loop {
            tokio::select! {
                result = &mut run => return result,
                _ = terminate.recv() => stop.cancel(),
                _ = interrupt.recv() => stop.cancel(),
                _ = hang_up.recv() => reload.notify_one(),
            }
        }
    })
}
