//! A node's cable in the hands of a test: raw Ethernet frames in and out of a switch port.
//!
//! A tap can be held by a program only through an ioctl; QEMU does that, and joins the tap to a
//! datagram socket that the test has the other end of.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use croft_rack::{Node, Rack, wait_until};
use tokio::net::UnixDatagram;
use tokio::process::Child;

/// How long a frame that should come may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// One plugged cable.
pub struct Wire {
    socket: UnixDatagram,
    remote: PathBuf,
    _qemu: Child,
}

impl Wire {
    /// Takes the place of the node's NIC; the node must be off.
    pub async fn plug(rack: &Rack, node: &Node, nic: usize) -> Self {
        let port = &node.info().ports[nic];
        let ours = rack.dir().join(format!("{port}.ours"));
        let remote = rack.dir().join(format!("{port}.qemu"));
        let socket = UnixDatagram::bind(&ours).expect("socket");
        let mut qemu = rack.fabric_command("/usr/bin/qemu-system-x86_64");
        qemu.args(["-machine", "none", "-nodefaults", "-display", "none"])
            .args(["-netdev", &format!("tap,id=tap,ifname={port},script=no,downscript=no")])
            .arg("-netdev")
            .arg(format!(
                "dgram,id=test,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                remote.display(),
                ours.display()
            ))
            .args(["-netdev", "hubport,id=a,hubid=0,netdev=tap"])
            .args(["-netdev", "hubport,id=b,hubid=0,netdev=test"])
            .stdin(Stdio::null());
        let qemu = qemu.spawn().expect("QEMU starts");
        let wire = Self { socket, remote, _qemu: qemu };
        wait_until(PATIENCE, "QEMU's end of a wire", async || wire.remote.exists().then_some(()))
            .await
            .expect("QEMU plugs in");
        wire
    }

    /// Sends a frame.
    pub async fn send(&self, frame: &[u8]) {
        self.socket.send_to(frame, &self.remote).await.expect("QEMU takes frames");
    }

    /// Receives until `wanted` comes; what came before it, and it.
    pub async fn receive_until(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let receive = async {
            loop {
                let mut buffer = vec![0; 2048];
                let length = self.socket.recv(&mut buffer).await.expect("frame");
                buffer.truncate(length);
                frames.push(buffer);
                if frames.last().is_some_and(|frame| wanted(frame)) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, receive).await.expect("the frame comes");
        frames
    }

    /// Whatever has come.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 2048];
        while let Ok(length) = self.socket.try_recv(&mut buffer) {
            frames.push(buffer[..length].to_vec());
        }
        frames
    }
}
