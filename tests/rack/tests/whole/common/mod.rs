//! What the rack's tests share: running a test inside a rack, and talking to BMCs.

pub mod frame;
pub mod wire;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use croft_rack::{Node, Rack, wait_until};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Set to the test's name in the copy of the test program that runs inside.
pub const INSIDE: &str = "CROFT_RACK_TEST";
/// The program under test.
pub const CROFT_RACK: &str = env!("CARGO_BIN_EXE_croft-rack");

/// Racks of one test program run one at a time: their guests share few processors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `body` inside a rack made with `options`: the test program starts itself again in there,
/// for this one test.
pub fn in_rack<F, Fut>(test: &str, options: &[&str], body: F)
where
    F: FnOnce(Rack) -> Fut,
    Fut: Future<Output = ()>,
{
    if std::env::var(INSIDE).is_ok_and(|name| name == test) {
        let rack = Rack::from_env().expect("this copy runs inside a rack");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(body(rack));
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let dir = tempfile::tempdir().expect("temporary directory");
    let output = Command::new(CROFT_RACK)
        .arg("enter")
        .arg("--dir")
        .arg(dir.path())
        .args(options)
        .arg("--")
        .arg(std::env::current_exe().expect("path of the test"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, test)
        .stdin(Stdio::null())
        .output()
        .expect("croft-rack starts");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    eprintln!("{said}");
    // Without the second condition a misspelt name would pass: the copy would find no test.
    let passed = output.status.success() && said.contains("1 passed");
    let logs = if passed { String::new() } else { logs(dir.path()) };
    assert!(passed, "inside the rack ({}):\n{said}\n{logs}", output.status);
}

/// The ends of all logs and consoles of a rack.
fn logs(dir: &std::path::Path) -> String {
    let mut text = String::new();
    let nodes = std::fs::read_dir(dir.join("nodes")).into_iter().flatten().flatten();
    let files = nodes.flat_map(|node| ["console.log", "qemu.log"].map(|f| node.path().join(f)));
    let own = ["rack.log", "dnsmasq.log", "ovs/ovs-vswitchd.log"].map(|file| dir.join(file));
    for path in files.chain(own) {
        let bytes = std::fs::read(&path).unwrap_or_default();
        let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3000)..]).into_owned();
        text.push_str(&format!("--- {}\n{}\n", path.display(), tail.escape_debug_lines()));
    }
    text
}

/// Terminal control characters made visible, lines kept.
trait EscapeLines {
    fn escape_debug_lines(&self) -> String;
}

impl EscapeLines for String {
    fn escape_debug_lines(&self) -> String {
        self.lines().map(|line| format!("{}\n", line.escape_debug())).collect()
    }
}

/// One request to a node's BMC with these credentials; gives status and body.
pub async fn ask(
    address: SocketAddr,
    credentials: Option<&str>,
    method: &str,
    path: &str,
    body: &str,
) -> (u16, Value) {
    let authorization = credentials
        .map(|text| base64::engine::general_purpose::STANDARD.encode(text))
        .map(|text| format!("Authorization: Basic {text}\r\n"))
        .unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{authorization}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), talk).await;
    let answer = answer.expect("the BMC answers").expect("the BMC is reachable");
    let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("status");
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A node's BMC with the right credentials.
#[derive(Debug)]
pub struct Bmc {
    pub address: SocketAddr,
    pub credentials: String,
}

pub const SYSTEM: &str = "/redfish/v1/Systems/1";

impl Bmc {
    pub fn of(rack: &Rack, node: &Node) -> Self {
        let password = rack.bmc_password().expect("password");
        let credentials = format!("{}:{}", rack.info().bmc_user, password.expose());
        Self { address: node.info().bmc, credentials }
    }

    pub async fn get(&self) -> Value {
        let (status, body) = ask(self.address, Some(&self.credentials), "GET", SYSTEM, "").await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub async fn power(&self) -> String {
        self.get().await["PowerState"].as_str().expect("PowerState").to_owned()
    }

    pub async fn patch(&self, body: &str) -> u16 {
        ask(self.address, Some(&self.credentials), "PATCH", SYSTEM, body).await.0
    }

    pub async fn reset(&self, kind: &str) -> u16 {
        let path = format!("{SYSTEM}/Actions/ComputerSystem.Reset");
        let body = format!(r#"{{"ResetType":"{kind}"}}"#);
        ask(self.address, Some(&self.credentials), "POST", &path, &body).await.0
    }

    pub async fn wait_for(&self, power: &str) {
        let what = format!("PowerState {power}");
        wait_until(Duration::from_secs(20), &what, async || {
            (self.power().await == power).then_some(())
        })
        .await
        .expect("power state changes");
    }
}

/// Waits until the node's console has `text` after byte `start`.
pub async fn wait_for_console(node: &Node, start: u64, text: &str, deadline: Duration) {
    let what = format!("{text:?} on the console of {}", node.name());
    wait_until(deadline, &what, async || {
        node.console_since(start).expect("console").contains(text).then_some(())
    })
    .await
    .expect("the node gets there");
}
