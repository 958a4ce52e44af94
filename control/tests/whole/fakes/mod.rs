//! A rack of fakes behind the real protocols: an OVSDB switch, Redfish BMCs and a boot server's
//! edge, which together act like the machines that they stand for. A node that is powered on in
//! its segment with an assignment attaches after a moment and is healthy; one that is told to
//! power off does so. What must never be seen is noted as a violation.
//!
//! A test with a real boot server starts the switch and the BMCs alone, and acts for the machines
//! itself.

pub mod bmc;
pub mod control;
pub mod edge;
pub mod farms;
pub mod spy;
pub mod switch;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use croft_proto::{Generation, edge as proto};

/// How long a test waits for what must come: long, for it costs nothing while it does come, and
/// machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// From power-on to the agent's attachment.
pub const BOOT_TIME: Duration = Duration::from_millis(100);

/// From the order to power off to the deed.
pub const SHUTDOWN_TIME: Duration = Duration::from_millis(30);

/// VLANs of the fake grid.
pub const IDLE_VLAN: u16 = 10;
pub const EXTERNAL_VLAN: u16 = 20;
pub const DEAD_VLAN: u16 = 4000;

/// A machine.
#[derive(Debug, Default)]
pub struct Machine {
    pub on_since: Option<Instant>,
    /// Times that it was powered on.
    pub boots: u32,
    /// Told to power off, and when.
    pub off_at: Option<Instant>,
    /// Its BMC does not answer.
    pub bmc_dead: bool,
    /// Its agent says nothing although it is on; since when.
    pub silent_since: Option<Instant>,
    /// Its operating system never comes up.
    pub never_boots: bool,
    pub overrides: u32,
    /// Times that its BMC was asked for its power, answered or not.
    pub looks: u32,
}

/// A boot record of the boot server.
#[derive(Debug)]
pub struct Boot {
    pub window: u64,
    pub place: String,
    pub is_open: bool,
}

/// The boot server's part of a rack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootd {
    /// Faked, the machines with it.
    Fake,
    /// Somebody runs a real one with its edge there.
    Real(SocketAddr),
}

/// A switch port.
#[derive(Debug, Clone)]
pub struct Port {
    pub uuid: String,
    pub tag: Option<u16>,
    pub protected: bool,
}

/// Everything that the fakes share.
#[derive(Debug)]
pub struct State {
    pub machines: BTreeMap<String, Machine>,
    pub ports: BTreeMap<String, Port>,
    pub switch_dead: bool,
    /// The other address that leads to the same ports.
    pub spare_dead: bool,
    pub next_cfg: i64,
    /// The boot server's durable state.
    pub desired: Option<proto::DesiredState>,
    pub boots: BTreeMap<String, Boot>,
    /// It holds what it is told, but can keep no boot record.
    pub cannot_follow: bool,
    pub started: Instant,
    /// Volumes that it reports though it was told to drop them.
    pub keeps_dropped: Vec<String>,
    /// Its connections are refused.
    pub edge_dead: bool,
    /// It is of a version that cannot tell of boots.
    pub edge_old: bool,
    /// What it has seen of nodes' boots.
    pub traces: BTreeMap<String, Vec<croft_proto::common::Boot>>,
    pub events: Vec<proto::Event>,
    /// Work that arrives for a tier, in nodes' worth: members share it.
    pub work: BTreeMap<String, f64>,
    /// Connections that balancers hold to a member.
    pub connections: BTreeMap<String, u32>,
    pub violations: Vec<String>,
    /// The machines are acted for by the test.
    pub real_bootd: bool,
}

/// Shared, locked for moments only.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub fn generation(&self) -> Generation {
        let held = self.desired.as_ref().and_then(|desired| desired.generation);
        held.map_or_else(Generation::default, Into::into)
    }

    pub fn assignment(&self, node: &str) -> Option<&proto::Assignment> {
        self.desired.as_ref()?.assignments.iter().find(|a| a.node == node)
    }

    pub fn tag(&self, port: &str) -> Option<u16> {
        self.ports.get(port)?.tag
    }

    pub fn violation(&mut self, text: String) {
        if !self.violations.contains(&text) {
            self.violations.push(text);
        }
    }

    /// Whether a node's agent is attached in its assignment's boot window.
    pub fn is_attached(&self, node: &str) -> bool {
        let Some(assignment) = self.assignment(node) else { return false };
        let Some(machine) = self.machines.get(node) else { return false };
        let segments = &self.desired.as_ref().expect("assigned").segments;
        let vlan = segments.iter().find(|s| s.name == assignment.segment).map(|s| s.vlan);
        let wired = self.tag(&format!("{node}p0")).map(u32::from) == vlan;
        let up = machine.on_since.is_some_and(|since| since.elapsed() >= BOOT_TIME);
        let opened = self
            .boots
            .get(node)
            .is_some_and(|boot| boot.is_open && boot.window == assignment.window);
        up && wired && opened && !machine.never_boots && machine.silent_since.is_none()
    }

    /// Lets time pass: machines that were told to power off do so.
    pub fn advance(&mut self) {
        let told: Vec<_> = self
            .desired
            .iter()
            .flat_map(|desired| &desired.assignments)
            .filter(|a| a.phase() == croft_proto::common::Phase::PowerOff)
            .map(|a| a.node.clone())
            .collect();
        for node in told {
            let attached = self.is_attached(&node);
            if let Some(machine) = self.machines.get_mut(&node)
                && attached
                && machine.off_at.is_none()
            {
                machine.off_at = Some(Instant::now() + SHUTDOWN_TIME);
            }
        }
        for machine in self.machines.values_mut() {
            if machine.off_at.is_some_and(|at| at <= Instant::now()) {
                machine.off_at = None;
                machine.on_since = None;
            }
        }
    }

    pub fn power_on(&mut self, node: &str) {
        if !self.real_bootd && self.assignment(node).is_none() {
            self.violation(format!("{node} was powered on without an assignment"));
        }
        if matches!(self.tag(&format!("{node}p0")), None | Some(IDLE_VLAN | DEAD_VLAN)) {
            self.violation(format!("{node} was powered on outside its farm's segment"));
        }
        if let Some(machine) = self.machines.get_mut(node)
            && machine.on_since.is_none()
        {
            machine.on_since = Some(Instant::now());
            machine.boots += 1;
        }
    }

    pub fn power_off(&mut self, node: &str) {
        if let Some(machine) = self.machines.get_mut(node) {
            machine.on_since = None;
            machine.off_at = None;
        }
    }
}

/// The fakes, running until dropped.
#[derive(Debug)]
pub struct Rack {
    pub state: Shared,
    pub dir: tempfile::TempDir,
    pub switch: SocketAddr,
    pub spare: SocketAddr,
    pub bmcs: SocketAddr,
    pub edge: SocketAddr,
    _tasks: tokio::task::JoinSet<()>,
}

/// The password that BMCs want.
pub const PASSWORD: &str = "correct-horse";

impl Rack {
    /// Starts a rack of `n1`, `n2`… The certificates come from `croft-control init`.
    pub async fn start(nodes: usize) -> Self {
        Self::with(nodes, Bootd::Fake).await
    }

    /// Starts a rack of `n1`, `n2`… with this boot server.
    pub async fn with(nodes: usize, bootd: Bootd) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        control::init(dir.path()).await;
        let mut file = fs::OpenOptions::new();
        file.write(true).create_new(true).mode(0o600);
        let mut file = file.open(dir.path().join("bmc.password")).expect("password file");
        std::io::Write::write_all(&mut file, PASSWORD.as_bytes()).expect("written");

        let names: Vec<_> = (1..=nodes).map(|i| format!("n{i}")).collect();
        let mut ports = BTreeMap::new();
        for (i, name) in names.iter().enumerate() {
            for (nic, tag) in [(0, IDLE_VLAN), (1, DEAD_VLAN)] {
                let uuid = format!("00000000-0000-0000-0000-{:012}", i * 2 + nic);
                ports.insert(
                    format!("{name}p{nic}"),
                    Port { uuid, tag: Some(tag), protected: false },
                );
            }
        }
        let state = Shared(Arc::new(Mutex::new(State {
            machines: names.iter().map(|name| (name.clone(), Machine::default())).collect(),
            ports,
            switch_dead: false,
            spare_dead: false,
            next_cfg: 0,
            desired: None,
            boots: BTreeMap::new(),
            cannot_follow: false,
            // As if it had run for long: silence counts.
            started: Instant::now(),
            keeps_dropped: Vec::new(),
            edge_dead: false,
            edge_old: false,
            traces: BTreeMap::new(),
            events: Vec::new(),
            work: BTreeMap::new(),
            connections: BTreeMap::new(),
            violations: Vec::new(),
            real_bootd: bootd != Bootd::Fake,
        })));
        let mut tasks = tokio::task::JoinSet::new();
        let switch = switch::start(&mut tasks, state.clone(), |state| state.switch_dead).await;
        let spare = switch::start(&mut tasks, state.clone(), |state| state.spare_dead).await;
        let bmcs = bmc::start(&mut tasks, state.clone()).await;
        let edge = match bootd {
            Bootd::Fake => edge::start(&mut tasks, state.clone(), dir.path()).await,
            Bootd::Real(address) => address,
        };
        Self { state, dir, switch, spare, bmcs, edge, _tasks: tasks }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The grid of this rack; `extra` goes before the classes, for deadlines and policy.
    pub fn grid(&self, extra: &str) -> String {
        let mut text = format!(
            r#"
[grid]
name = "fake"
power_on_limit = 3
[idle]
vlan = {IDLE_VLAN}
subnet = "10.10.0.0/24"
[farms]
vlans = "100-103"
subnets = "10.20.0.0/16"
[external]
vlan = {EXTERNAL_VLAN}
subnet = "203.0.113.0/24"
addresses = "203.0.113.10-203.0.113.99"
gateway = "203.0.113.1"
[dead]
vlan = {DEAD_VLAN}
{extra}
[[class]]
name = "small"
cpus = 1
memory_mib = 384
network_mbps = 100
disk_mbps = 400
[[switch]]
name = "sw0"
driver = "ovsdb"
address = "{}"
bridge = "br0"
[[bootd]]
name = "bootd0"
edge = "{}"
device = "seg{{vlan}}"
"#,
            self.switch, self.edge
        );
        let nodes = self.state.lock().machines.len();
        for i in 1..=nodes {
            text.push_str(&format!(
                r#"
[[node]]
name = "n{i}"
class = "small"
[[node.nic]]
mac = "52:54:00:00:{i:02x}:00"
switch = "sw0"
port = "n{i}p0"
[[node.nic]]
mac = "52:54:00:00:{i:02x}:01"
switch = "sw0"
port = "n{i}p1"
[node.bmc]
driver = "redfish"
url = "http://{}"
system = "n{i}"
username = "croft"
password_file = "{}"
"#,
                self.bmcs,
                self.path().join("bmc.password").display()
            ));
        }
        text
    }

    /// The same with these ports on a second switch, `sw1`.
    pub fn grid_of_two(&self, extra: &str, moved: &[&str]) -> String {
        let second = format!(
            "[[switch]]\nname = \"sw1\"\ndriver = \"ovsdb\"\naddress = \"{}\"\n\
             bridge = \"br0\"\n[[bootd]]",
            self.spare
        );
        let mut text = self.grid(extra).replace("[[bootd]]", &second);
        for port in moved {
            let nic = |switch: &str| format!("switch = \"{switch}\"\nport = \"{port}\"");
            assert!(text.contains(&nic("sw0")), "there is no port {port}");
            text = text.replace(&nic("sw0"), &nic("sw1"));
        }
        text
    }

    /// Fails if the fakes saw what must never be.
    pub fn assert_sound(&self) {
        let state = self.state.lock();
        assert!(state.violations.is_empty(), "violations: {:#?}", state.violations);
    }

    /// Everything off, in the idle segment, without assignment or volume.
    pub fn assert_all_idle(&self) {
        self.assert_all_off();
        let state = self.state.lock();
        let desired = state.desired.as_ref().expect("told");
        assert!(desired.assignments.is_empty() && desired.volumes.is_empty());
    }

    /// Everything off and in the idle segment.
    pub fn assert_all_off(&self) {
        let state = self.state.lock();
        for (name, machine) in &state.machines {
            assert!(machine.on_since.is_none(), "{name} is on");
            assert_eq!(state.tag(&format!("{name}p0")), Some(IDLE_VLAN), "{name}");
            assert_eq!(state.tag(&format!("{name}p1")), Some(DEAD_VLAN), "{name}");
        }
    }
}

/// Polls until the condition holds; fails after the deadline with what it last said.
pub async fn eventually<F>(what: &str, limit: Duration, mut condition: impl FnMut() -> F)
where
    F: Future<Output = Result<(), String>>,
{
    let end = Instant::now() + limit;
    loop {
        match condition().await {
            Ok(()) => return,
            Err(last) if Instant::now() > end => panic!("{what}: not within {limit:?}: {last}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
