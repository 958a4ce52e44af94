//! Running the system's programs, and knowing which packages they come from.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::RackError;

/// OVMF's code, read only and shared by all nodes.
pub(crate) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// OVMF's variables: the original that each node gets a copy of.
pub(crate) const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The schema of the switch's database.
pub(crate) const OVS_SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Programs by their absolute Debian paths: /usr/sbin is not in an ordinary user's PATH.
pub(crate) const IP: &str = "/usr/sbin/ip";
pub(crate) const NFT: &str = "/usr/sbin/nft";
pub(crate) const OVSDB_SERVER: &str = "/usr/sbin/ovsdb-server";
pub(crate) const OVS_VSWITCHD: &str = "/usr/sbin/ovs-vswitchd";
pub(crate) const OVSDB_TOOL: &str = "/usr/bin/ovsdb-tool";
pub(crate) const OVS_VSCTL: &str = "/usr/bin/ovs-vsctl";
pub(crate) const OVS_OFCTL: &str = "/usr/bin/ovs-ofctl";
pub(crate) const QEMU: &str = "/usr/bin/qemu-system-x86_64";
pub(crate) const UNSHARE: &str = "/usr/bin/unshare";
pub(crate) const NSENTER: &str = "/usr/bin/nsenter";

/// What the rack needs, and the Debian 12 package that has it.
const NEEDED: [(&str, &str); 13] = [
    (UNSHARE, "util-linux"),
    (NSENTER, "util-linux"),
    (IP, "iproute2"),
    (NFT, "nftables"),
    (OVSDB_SERVER, "openvswitch-switch"),
    (OVS_VSWITCHD, "openvswitch-switch"),
    (OVSDB_TOOL, "openvswitch-common"),
    (OVS_VSCTL, "openvswitch-switch"),
    (OVS_OFCTL, "openvswitch-common"),
    (OVS_SCHEMA, "openvswitch-switch"),
    (QEMU, "qemu-system-x86"),
    ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu"),
    (OVMF_CODE, "ovmf"),
];

/// Debian packages that the rack needs and that are not installed, each once.
pub fn missing_packages() -> Vec<&'static str> {
    let mut missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or it fails.
pub(crate) async fn run(mut command: Command) -> Result<String, RackError> {
    command.stdin(Stdio::null());
    let output = command
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| RackError::Start { program: describe(&command), source })?;
    finish(&command, output)
}

/// Runs a program that reads `input`.
///
/// # Errors
/// It cannot be started, or it fails.
pub(crate) async fn run_with_input(mut command: Command, input: &str) -> Result<String, RackError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let line = describe(&command);
    let start = |source| RackError::Start { program: line.clone(), source };
    let mut child = command.kill_on_drop(true).spawn().map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early shows that in its status, which says more than EPIPE.
        if let Err(error) = stdin.write_all(input.as_bytes()).await {
            tracing::debug!(%error, "program did not read its input");
        }
    }
    let output = child.wait_with_output().await.map_err(start)?;
    finish(&command, output)
}

fn finish(command: &Command, output: std::process::Output) -> Result<String, RackError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RackError::Failed { command: describe(command), status: output.status, stderr })
}

/// The command line, for messages; its arguments hold no secret.
fn describe(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A command with arguments.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A command in a network namespace. `ip netns exec` becomes the program: its process id is the
/// program's own.
pub(crate) fn in_namespace(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(IP);
    command.args(["netns", "exec", namespace]).arg(program);
    command
}
