//! `croft-rack`: runs a command in a virtual rack. See the library's documentation.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use croft_rack::{DiskChoice, FirmwareChoice, Options};

/// A virtual rack: switch, nodes, BMCs, in one unprivileged namespace.
#[derive(Debug, Parser)]
#[command(name = "croft-rack", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run a command in a new rack; exits with its status when it ends, and the rack with it.
    Enter(RackArgs),
    /// Run a command in a rack that runs already, beside whatever else runs there.
    Exec {
        /// The rack's directory.
        #[arg(long)]
        dir: PathBuf,
        /// The command to run and its arguments.
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Print the Debian packages that the rack lacks, one a line; fails if there are any.
    Packages,
    /// Process 1 of the rack's namespace; started by `enter`.
    #[command(hide = true)]
    Init(RackArgs),
    /// The rack itself; started by `init`.
    #[command(hide = true)]
    Manage(RackArgs),
}

#[derive(Debug, Args)]
struct RackArgs {
    /// Directory for consoles, sockets, logs, grid.toml and rack.json.
    #[arg(long)]
    dir: PathBuf,
    /// Number of nodes, 1 to 64.
    #[arg(long, default_value_t = 6)]
    nodes: u8,
    /// Number of VLANs for farms, counted from 100; 1 to 64.
    #[arg(long, default_value_t = 4)]
    farm_vlans: u16,
    /// Firmware of all nodes (`bios`, `uefi`) or of one (`n3=uefi`); may be repeated. Without it
    /// odd nodes have a BIOS and even ones UEFI.
    #[arg(long)]
    firmware: Vec<FirmwareChoice>,
    /// A disk of one node (`n3=FILE`), which it boots after the network; may be repeated. What the
    /// node writes to it is lost when it is powered off.
    #[arg(long)]
    disk: Vec<DiskChoice>,
    /// Memory of a node in MiB.
    #[arg(long, default_value_t = 384)]
    memory: u32,
    /// Virtual CPUs of a node.
    #[arg(long, default_value_t = 1)]
    cpus: u8,
    /// A Linux kernel to try KVM with; KVM is used only if it boots. CROFT_RACK_KVM=0 or 1
    /// decides without trying.
    #[arg(long)]
    probe_kernel: Option<PathBuf>,
    /// The command to run and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl RackArgs {
    fn options(&self) -> Options {
        Options {
            dir: self.dir.clone(),
            nodes: self.nodes,
            farm_vlans: self.farm_vlans,
            firmware: self.firmware.clone(),
            disks: self.disk.clone(),
            memory_mib: self.memory,
            cpus: self.cpus,
            probe_kernel: self.probe_kernel.clone(),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match log(&cli.action).and_then(|()| run(&cli)) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("croft-rack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The rack logs to a file of its own: the terminal belongs to the command in it.
fn log(action: &Action) -> anyhow::Result<()> {
    let Action::Manage(args) = action else { return Ok(()) };
    let path = args.dir.join("rack.log");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("CROFT_RACK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_writer(std::sync::Mutex::new(file))
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .init();
    Ok(())
}

fn run(cli: &Cli) -> anyhow::Result<u8> {
    // The inner stages get the same arguments after their own name.
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    match &cli.action {
        Action::Packages => {
            let missing = croft_rack::missing_packages();
            missing.iter().for_each(|package| println!("{package}"));
            Ok(u8::from(!missing.is_empty()))
        }
        Action::Enter(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(croft_rack::enter(&args.options(), &arguments))?)
        }
        Action::Exec { dir, command } => Err(croft_rack::exec(dir, command).into()),
        Action::Init(_) => Ok(croft_rack::init(&arguments)?),
        Action::Manage(args) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(croft_rack::manage(&args.options(), &args.command))?)
        }
    }
}
