//! `croft-agent run`: started by the init of every image of Croft.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use croft_agent::{AgentError, Linux, Options};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Croft's node agent.
#[derive(Debug, Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Attaches to the bootd that booted this node, and serves it until told to stop.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// What the per-node initrd brought.
    #[arg(long, value_name = "FILE", default_value = "/run/croft/agent.json")]
    config: PathBuf,
    /// Where the session key of this boot is kept.
    #[arg(long, value_name = "FILE", default_value = "/run/croft/session.key")]
    session_key: PathBuf,
    /// Where membership.json and HAProxy's files are written.
    #[arg(long, value_name = "DIR", default_value = "/run/croft")]
    run_dir: PathBuf,
    /// The HAProxy of a balancer.
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/haproxy")]
    haproxy: PathBuf,
    /// The packet filter's program.
    #[arg(long, value_name = "FILE", default_value = "/usr/sbin/nft")]
    nft: PathBuf,
    /// Port of a balancer's own health and statistics listener.
    #[arg(long, value_name = "PORT", default_value_t = Options::STATUS_PORT)]
    status_port: u16,
}

/// Exit status of a faulty configuration (EX_USAGE of sysexits.h).
const BAD_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let Command { verb: Verb::Run(run) } = Command::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("CROFT_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        // A node's console is a terminal that ends in a file.
        .with_ansi(false)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
    match serve(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("croft-agent: {error:#}");
            match error.downcast_ref() {
                Some(AgentError::Config(_) | AgentError::Certificate { .. }) => BAD_CONFIG.into(),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

// One thread: a node is there for its service, and the agent's work is little.
#[tokio::main(flavor = "current_thread")]
async fn serve(run: Run) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let options = Options {
        config: run.config,
        session_key: run.session_key,
        run_dir: run.run_dir,
        haproxy: run.haproxy,
        status_port: run.status_port,
    };
    let agent = croft_agent::run(options, Linux { nft: run.nft }, stop.clone());
    let mut agent = std::pin::pin!(agent);
    tokio::select! {
        done = &mut agent => return Ok(done?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
    Ok(agent.await?)
}
