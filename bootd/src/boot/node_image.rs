//! A node's own initrd: the two files that make one boot this node's boot. Pure.
//!
//! It is a cpio archive in "newc" format (Linux Documentation/driver-api/early-userspace/
//! buffer-format.rst), which the kernel unpacks after the shared initrd, padded so that another
//! archive could follow.

use croft_proto::{AgentConfig, BootEnv, InvalidBootEnv};

/// The archive's length is a multiple of this.
const BLOCK: usize = 512;

const DIRECTORY: u32 = 0o040_700;
const FILE: u32 = 0o100_600;

/// Packs `croft/boot.env` and `croft/agent.json`, mode 0600 in a directory of mode 0700.
///
/// # Errors
/// A value that the initramfs cannot read.
pub(crate) fn pack(env: &BootEnv, agent: &AgentConfig) -> Result<Vec<u8>, InvalidBootEnv> {
    let env = env.render()?;
    // Plain strings, numbers and addresses always serialise.
    let agent = serde_json::to_vec(agent).unwrap_or_default();
    let mut archive = Vec::with_capacity(4096);
    entry(&mut archive, 1, DIRECTORY, "croft", &[]);
    entry(&mut archive, 2, FILE, "croft/boot.env", env.as_bytes());
    entry(&mut archive, 3, FILE, "croft/agent.json", &agent);
    entry(&mut archive, 0, 0, "TRAILER!!!", &[]);
    pad(&mut archive, BLOCK);
    Ok(archive)
}

fn entry(archive: &mut Vec<u8>, inode: u32, mode: u32, name: &str, data: &[u8]) {
    let links = if mode == DIRECTORY { 2 } else { 1 };
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    // namesize with its NUL, check.
    let fields = [inode, mode, 0, 0, links, 0, length(data), 0, 0, 0, 0, 1 + length(name), 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive, 4);
    archive.extend_from_slice(data);
    pad(archive, 4);
}

/// Lengths here are of texts that were bounded long before.
fn length(data: impl AsRef<[u8]>) -> u32 {
    u32::try_from(data.as_ref().len()).unwrap_or(u32::MAX)
}

fn pad(archive: &mut Vec<u8>, to: usize) {
    archive.resize(archive.len().next_multiple_of(to), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use croft_proto::Secret;

    use super::*;

    #[test]
    fn cpio_unpacks_what_was_packed() {
        let env = BootEnv {
            host_name: "shop-web-1".to_owned(),
            boot_nic: "52:54:00:00:01:00".parse().expect("MAC"),
            address: [10, 20, 1, 11].into(),
            prefix: 24,
            root: None,
        };
        let agent = AgentConfig {
            node: "n1".parse().expect("name"),
            collector: "10.20.1.1:7100".parse().expect("address"),
            certificate: "PEM".to_owned(),
            boot_token: Secret::new("token".to_owned()),
            boot_nic: env.boot_nic,
        };
        let archive = pack(&env, &agent).expect("good");
        assert_eq!(archive.len() % BLOCK, 0);
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut cpio = Command::new("cpio")
            .args(["--extract", "--quiet", "--preserve-modification-time"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("cpio is installed");
        cpio.stdin.take().expect("piped").write_all(&archive).expect("cpio reads");
        assert!(cpio.wait().expect("cpio ends").success());
        let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).expect("unpacked");
        assert_eq!(text("croft/boot.env"), env.render().expect("good"));
        assert_eq!(
            serde_json::from_str::<AgentConfig>(&text("croft/agent.json")).expect("JSON"),
            agent
        );
        for (name, mode) in
            [("croft", 0o700), ("croft/boot.env", 0o600), ("croft/agent.json", 0o600)]
        {
            let metadata = std::fs::metadata(dir.path().join(name)).expect("unpacked");
            assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
        }
    }
}
