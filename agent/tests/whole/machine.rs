//! The real machine's side, inside namespaces of its own: host name, outer NIC, packet filter.
//!
//! The test runs itself once more under `unshare`, so that nothing it does reaches the machine
//! that it runs on.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use croft_agent::{Linux, Machine, Nic};
use croft_test_support::namespace;

const MAC: &str = "52:54:00:00:01:01";

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed here: {e}"))
}

fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The internet: a network namespace at the far end of the outer NIC.
struct Outside(Child);

impl Outside {
    fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo ready; exec sleep 120"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is needed here");
        let mut outside = Self(holder);
        let mut ready = [0; 6];
        let mut stdout = outside.0.stdout.take().expect("piped");
        std::io::Read::read_exact(&mut stdout, &mut ready).expect("it is ready");
        let pid = outside.0.id().to_string();
        succeed("ip", &["link", "set", "far", "netns", &pid]);
        outside.succeed(&["ip", "address", "add", "203.0.113.1/24", "dev", "far"]);
        outside.succeed(&["ip", "link", "set", "far", "up"]);
        outside
    }

    fn enter<'a>(&self, pid: &'a str, command: &[&'a str]) -> Vec<&'a str> {
        [&["-t", pid, "-n"], command].concat()
    }

    fn succeed(&self, command: &[&str]) -> String {
        let pid = self.0.id().to_string();
        succeed("nsenter", &self.enter(&pid, command))
    }

    /// Whether a TCP connection from outside is answered within a second.
    fn reaches(&self, port: u16) -> bool {
        let pid = self.0.id().to_string();
        let connect = format!("exec 3<>/dev/tcp/203.0.113.10/{port}");
        run("nsenter", &self.enter(&pid, &["timeout", "1", "bash", "-c", &connect]))
            .status
            .success()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_balancer_is_named_reached_at_its_exposed_ports_and_nowhere_else() {
    if !namespace::enter_empty(
        "machine::a_balancer_is_named_reached_at_its_exposed_ports_and_nowhere_else",
        |_| (),
    ) {
        return;
    }
    succeed("mount", &["-t", "sysfs", "sysfs", "/sys"]);
    succeed("ip", &["link", "add", "eth1", "address", MAC, "type", "veth", "peer", "name", "far"]);
    let outside = Outside::new();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(inside(&outside));
}

async fn inside(outside: &Outside) {
    let machine = Linux::default();
    machine.set_host_name("shop-lb-1").expect("it is renamed");
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("there");
    assert_eq!(name.trim(), "shop-lb-1");

    let nic = Nic {
        mac: MAC.parse().expect("valid"),
        address: "203.0.113.10".parse().expect("valid"),
        prefix: 24,
        gateway: Some("203.0.113.1".parse().expect("valid")),
    };
    // Twice: each attach brings a Welcome.
    for _ in 0..2 {
        machine.configure_nic(&nic).await.expect("it is configured");
    }
    let addresses = succeed("ip", &["-4", "-o", "address", "show", "dev", "eth1"]);
    assert_eq!(
        addresses.matches("inet 203.0.113.10/24 brd 203.0.113.255").count(),
        1,
        "{addresses}"
    );
    let routes = succeed("ip", &["-4", "route", "show", "default"]);
    assert_eq!(routes.trim().lines().count(), 1, "{routes}");
    assert!(routes.starts_with("default via 203.0.113.1 dev eth1"), "{routes}");
    let stranger = Nic { mac: "52:54:00:00:01:02".parse().expect("valid"), ..nic.clone() };
    assert!(machine.configure_nic(&stranger).await.is_err());

    let _listeners = [80, 8080, 8404]
        .map(|port| TcpListener::bind(("0.0.0.0", port)).expect("the port is free in here"));
    assert!(outside.reaches(80) && outside.reaches(8404), "nothing is filtered yet");
    machine.expose(Some(nic.mac), &BTreeSet::from([80])).await.expect("the table is made");
    assert!(outside.reaches(80));
    assert!(!outside.reaches(8404) && !outside.reaches(8080));
    machine.expose(Some(nic.mac), &BTreeSet::from([8080])).await.expect("the set is filled");
    assert!(outside.reaches(8080));
    assert!(!outside.reaches(80) && !outside.reaches(8404));
    machine.expose(Some(nic.mac), &BTreeSet::new()).await.expect("the set is emptied");
    assert!(!outside.reaches(8080));

    // An image brings its own table: its chains stay, its set is filled.
    succeed("nft", &["delete", "table", "inet", "croft"]);
    for made in [
        "add table inet croft",
        "add set inet croft exposed { type inet_service; }",
        "add chain inet croft image",
        "add rule inet croft image tcp dport @exposed counter",
    ] {
        succeed("nft", &[made]);
    }
    machine.expose(Some(nic.mac), &BTreeSet::from([80, 443])).await.expect("the set is filled");
    let rules = succeed("nft", &["list", "table", "inet", "croft"]);
    assert!(rules.contains("elements = { 80, 443 }") && rules.contains("chain image"), "{rules}");
    assert!(!rules.contains("hook input"), "the image's own rules stand: {rules}");
    // Traffic from inside goes on either way.
    assert!(outside.succeed(&["ip", "route"]).contains("203.0.113.0/24"));
}
