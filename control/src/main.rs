//! The Control Plane daemon's command line.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use croft_control::{Intervals, Role, init, issue, open_store, revoke, run, tokens, write_profile};
use croft_proto::{BootdName, OrganizationName};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Croft's Control Plane.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes the certificate authority, the certificates, the store and the first operator token.
    Init {
        /// Where it all goes; made if it is not there.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the grid's boot server.
        #[arg(long, default_value = "bootd0")]
        bootd: BootdName,
        /// Where operators will reach the API.
        #[arg(long, default_value = "127.0.0.1:7000")]
        api_address: SocketAddr,
    },
    /// Runs the Control Plane.
    Run {
        /// What `init` made.
        #[arg(long)]
        dir: PathBuf,
        /// Where the API listens.
        #[arg(long, default_value = "127.0.0.1:7000")]
        listen: SocketAddr,
        #[command(flatten)]
        pace: Pace,
    },
    /// Makes another token and writes a profile with it.
    Token {
        /// What `init` made.
        #[arg(long)]
        dir: PathBuf,
        /// Whose it is.
        #[arg(long)]
        organization: OrganizationName,
        /// What it allows.
        #[arg(long, value_enum)]
        role: RoleArg,
        /// Where operators reach the API.
        #[arg(long, default_value = "127.0.0.1:7000")]
        api_address: SocketAddr,
        /// The profile to write.
        #[arg(long)]
        out: PathBuf,
    },
    /// Lists the tokens that are accepted: id, organization, role.
    Tokens {
        /// What `init` made.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Takes a token back.
    Revoke {
        /// What `init` made.
        #[arg(long)]
        dir: PathBuf,
        /// What `tokens` lists, and a profile's token has before its dot.
        id: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Everything.
    Operator,
    /// The farms of the organization.
    Tenant,
}

/// How often things are looked at, in milliseconds; for tests.
#[derive(Debug, Args)]
struct Pace {
    #[arg(long, hide = true, default_value_t = 500)]
    tick_ms: u64,
    #[arg(long, hide = true, default_value_t = 500)]
    status_ms: u64,
    #[arg(long, hide = true, default_value_t = 1000)]
    frames_ms: u64,
    #[arg(long, hide = true, default_value_t = 2000)]
    power_ms: u64,
    #[arg(long, hide = true, default_value_t = 10_000)]
    audit_ms: u64,
}

impl From<Pace> for Intervals {
    fn from(pace: Pace) -> Self {
        let ms = |ms: u64| Duration::from_millis(ms.max(1));
        Self {
            tick: ms(pace.tick_ms),
            status: ms(pace.status_ms),
            frames: ms(pace.frames_ms),
            power: ms(pace.power_ms),
            audit: ms(pace.audit_ms),
        }
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match cli.command {
        Command::Init { dir, bootd, api_address } => {
            init(&dir, &bootd, api_address).await?;
            println!("{}", dir.join("operator.toml").display());
        }
        Command::Run { dir, listen, pace } => {
            let stop = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate()).context("signals")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("signals")?;
            let running = run(&dir, listen, pace.into(), stop.clone());
            tokio::pin!(running);
            tokio::select! {
                outcome = &mut running => return Ok(outcome?),
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
            running.await?;
        }
        Command::Token { dir, organization, role, api_address, out } => {
            let store = open_store(&dir)?;
            let role = match role {
                RoleArg::Operator => Role::Operator,
                RoleArg::Tenant => Role::Tenant,
            };
            let token = issue(&store, organization, role).await?;
            let ca = std::fs::canonicalize(dir.join("ca.pem")).context("ca.pem")?;
            write_profile(&out, api_address, &ca, &token)?;
            println!("{}", out.display());
        }
        Command::Tokens { dir } => {
            for token in tokens(&open_store(&dir)?).await? {
                println!("{} {} {}", token.id, token.organization, token.role);
            }
        }
        Command::Revoke { dir, id } => {
            revoke(&open_store(&dir)?, &id).await?;
            println!("token {id} is not accepted any more");
        }
    }
    Ok(())
}
