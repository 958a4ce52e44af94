//! The rack as the programs in it see it.

use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use croft_proto::{Secret, VlanId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::qemu::{CONSOLE, SHELL};
use crate::tools::{in_namespace, run};
use crate::{NodeInfo, RackError, RackInfo, ShellOutput, shell, switch, wait_until};

/// Names the rack's directory to the programs in it.
pub(crate) const DIR_VARIABLE: &str = "CROFT_RACK_DIR";

/// The rack that this program runs in.
#[derive(Debug, Clone)]
pub struct Rack {
    info: RackInfo,
}

impl Rack {
    /// Reads the rack that `CROFT_RACK_DIR` names.
    ///
    /// # Errors
    /// The variable is not set, or `rack.json` cannot be read.
    pub fn from_env() -> Result<Self, RackError> {
        let dir = std::env::var_os(DIR_VARIABLE).ok_or(RackError::Outside)?;
        Self::open(Path::new(&dir))
    }

    /// Reads the rack in `dir`.
    ///
    /// # Errors
    /// `rack.json` cannot be read.
    pub fn open(dir: &Path) -> Result<Self, RackError> {
        let path = dir.join("rack.json");
        let text = std::fs::read_to_string(&path).map_err(RackError::file("read", &path))?;
        let info = serde_json::from_str(&text)
            .map_err(|error| RackError::Content { path, reason: error.to_string() })?;
        Ok(Self { info })
    }

    /// Everything that `rack.json` says.
    pub fn info(&self) -> &RackInfo {
        &self.info
    }

    /// The rack's directory.
    pub fn dir(&self) -> &Path {
        &self.info.dir
    }

    /// The inventory, `grid.toml`.
    pub fn grid_file(&self) -> PathBuf {
        self.info.path("grid.toml")
    }

    /// The password of all BMCs.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn bmc_password(&self) -> Result<Secret, RackError> {
        let path = &self.info.bmc_password_file;
        let text = std::fs::read_to_string(path).map_err(RackError::file("read", path))?;
        Ok(Secret::new(text.trim_end().to_owned()))
    }

    /// All nodes in order.
    pub fn nodes(&self) -> impl Iterator<Item = Node> {
        self.info.nodes.iter().cloned().map(|info| Node { info })
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<Node, RackError> {
        self.nodes()
            .find(|node| node.name() == name)
            .ok_or_else(|| RackError::NoNode(name.to_owned()))
    }

    /// A program in the fabric's namespace, where the switch and bootd's legs are. It is killed
    /// when its `Child` is dropped; its process id is the program's own.
    pub fn fabric_command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_in(&self.info.fabric_ns, program)
    }

    /// A program in the internet's namespace; otherwise as [`Rack::fabric_command`].
    pub fn internet_command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_in(&self.info.internet_ns, program)
    }

    /// A program in the control namespace, this program's own.
    pub fn control_command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.kill_on_drop(true);
        command
    }

    fn command_in(&self, namespace: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = in_namespace(namespace, program);
        command.kill_on_drop(true);
        command
    }

    /// Asks the switch over OVSDB, with `ovs-vsctl`.
    ///
    /// # Errors
    /// ovs-vsctl fails.
    pub async fn switch(&self, arguments: &[&str]) -> Result<String, RackError> {
        let mut command = switch::vsctl(&self.info);
        command.args(arguments);
        run(command).await
    }

    /// The access VLAN of a switch port, `n1p0` or another.
    ///
    /// # Errors
    /// There is no such port, or it has no tag.
    pub async fn access_vlan(&self, port: &str) -> Result<VlanId, RackError> {
        let tag = self.switch(&["get", "port", port, "tag"]).await?;
        let vlan = tag.trim().parse::<u32>().ok().and_then(|id| VlanId::try_from(id).ok());
        vlan.ok_or_else(|| RackError::Content {
            path: port.into(),
            reason: format!("its tag is {}", tag.trim()),
        })
    }
}

/// A node as the programs in the rack see it.
#[derive(Debug, Clone)]
pub struct Node {
    info: NodeInfo,
}

impl Node {
    /// Everything that `rack.json` says about it.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.info.name.as_str()
    }

    /// File with the serial console of all its boots.
    pub fn console_path(&self) -> PathBuf {
        self.info.dir.join(CONSOLE)
    }

    /// Length of the console so far in bytes: what comes later is of a later moment.
    ///
    /// # Errors
    /// The console cannot be read.
    pub fn console_len(&self) -> Result<u64, RackError> {
        let path = self.console_path();
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            // Never powered on.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(RackError::file("read", path)(error)),
        }
    }

    /// The console from byte `start` on.
    ///
    /// # Errors
    /// The console cannot be read.
    pub fn console_since(&self, start: u64) -> Result<String, RackError> {
        if self.console_len()? <= start {
            return Ok(String::new());
        }
        let path = self.console_path();
        let failed = |error| RackError::file("read", &path)(error);
        let mut file = std::fs::File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last `bytes` of the console.
    ///
    /// # Errors
    /// The console cannot be read.
    pub fn console_tail(&self, bytes: u64) -> Result<String, RackError> {
        self.console_since(self.console_len()?.saturating_sub(bytes))
    }

    /// Process id of its QEMU, if it is powered on.
    ///
    /// # Errors
    /// The pid file cannot be read.
    pub fn qemu_pid(&self) -> Result<Option<i32>, RackError> {
        let path = self.info.dir.join("qemu.pid");
        match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| RackError::Content {
                path,
                reason: format!("{text:?} is not a process id"),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RackError::file("read", path)(error)),
        }
    }

    /// Ends its QEMU with SIGKILL, as a node that loses power, and waits until it is off.
    ///
    /// # Errors
    /// It is off already, or does not end.
    pub async fn kill_qemu(&self) -> Result<(), RackError> {
        let pid = self.qemu_pid()?.ok_or_else(|| RackError::Off(self.name().to_owned()))?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(RackError::system("kill QEMU"))?;
        let what = format!("end of node {}", self.name());
        wait_until(Duration::from_secs(10), &what, async || {
            matches!(self.qemu_pid(), Ok(now) if now != Some(pid)).then_some(())
        })
        .await
    }

    /// Runs a command in the shell of a test image; it must end with status 0 within the deadline,
    /// in which the shell may still have to appear. One command at a time per node.
    ///
    /// # Errors
    /// The node is off, the deadline passes, or the command fails.
    pub async fn shell(&self, command: &str, deadline: Duration) -> Result<String, RackError> {
        let ShellOutput { status, output } = self.shell_output(command, deadline).await?;
        if status == 0 {
            return Ok(output);
        }
        let (node, command) = (self.name().to_owned(), command.to_owned());
        Err(RackError::ShellStatus { node, command, status, output })
    }

    /// As [`Node::shell`], for commands that may fail.
    ///
    /// # Errors
    /// The node is off, or the deadline passes.
    pub async fn shell_output(
        &self,
        command: &str,
        deadline: Duration,
    ) -> Result<ShellOutput, RackError> {
        if self.qemu_pid()?.is_none() {
            return Err(RackError::Off(self.name().to_owned()));
        }
        shell::run(self.name(), &self.info.dir.join(SHELL), command, deadline).await
    }
}
