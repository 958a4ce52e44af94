//! What is behind a BMC and two switch ports: a machine that boots from the network whenever it is
//! powered on, as one with an iSCSI root does, and that speaks the real protocols in the segment
//! of its first port. It is as patient as a real one, only quicker.
//!
//! Power cut and cable pulled are silent, as they are in a rack: the machine's address vanishes
//! before its connections do, so that nobody sends a FIN for it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use croft_proto::agent::{MembershipApplied, PhaseReached, agent_message, bootd_message, hello};
use croft_proto::{AgentConfig, MacAddr, common};
use croft_test_support::agent::{self, Agent, token};
use croft_test_support::dhcp::{self, ACK, BIOS, DISCOVER, IPXE, Lease, OFFER, REQUEST};
use croft_test_support::initiator::{Account, BLOCK, LoginError, Session};
use croft_test_support::namespace::sh;
use croft_test_support::{http, images};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::fakes::{DEAD_VLAN, Shared};

/// Between two tries of anything.
const PAUSE: Duration = Duration::from_millis(30);

/// How long firmware waits for an answer before it asks again.
const ANSWER: Duration = Duration::from_millis(500);

/// The block that a machine writes when it has its disk.
const MARK: [u8; BLOCK] = [0xa5; BLOCK];

/// What a boot was given, and how far it came.
#[derive(Debug, Clone)]
pub struct Given {
    /// Its address.
    pub address: Ipv4Addr,
    /// What its agent was configured with.
    pub config: AgentConfig,
    /// Its disk's login.
    pub account: Account,
    /// Its agent's session key.
    pub key: Option<hello::Credential>,
    /// It has a session with its disk.
    pub has_disk: bool,
}

/// What is remembered of a machine.
#[derive(Debug, Default)]
struct Memory {
    address: Option<Ipv4Addr>,
    /// Boot scripts that it got since it was made.
    scripts: u32,
    given: Option<Given>,
}

/// All machines of a rack, acting until dropped.
#[derive(Debug)]
pub struct Machines {
    memory: Arc<Mutex<BTreeMap<String, Memory>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// One machine.
#[derive(Debug, Clone)]
struct Machine {
    name: String,
    mac: MacAddr,
    state: Shared,
    memory: Arc<Mutex<BTreeMap<String, Memory>>>,
}

/// What of a machine's outside its inside depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outside {
    is_on: bool,
    boots: u32,
    vlan: u16,
}

/// Why a boot begins again.
#[derive(Debug)]
struct Failed;

impl<T: std::error::Error> From<T> for Failed {
    fn from(_: T) -> Self {
        Self
    }
}

/// What is known of the block that the machine marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    AsInImage,
    /// The write was cut off.
    Either,
    Marked,
}

impl Machines {
    /// Acts for the machines of a rack.
    pub fn start(state: &Shared) -> Self {
        let names: Vec<_> = state.lock().machines.keys().cloned().collect();
        let memory = names.iter().map(|name| (name.clone(), Memory::default())).collect();
        let memory = Arc::new(Mutex::new(memory));
        let mut tasks = JoinSet::new();
        for (i, name) in names.into_iter().enumerate() {
            let mac = format!("52:54:00:00:{:02x}:00", i + 1).parse().expect("a MAC");
            let (state, memory) = (state.clone(), Arc::clone(&memory));
            tasks.spawn(Machine { name, mac, state, memory }.exist());
        }
        Self { memory, tasks: Mutex::new(tasks) }
    }

    /// Fails if a machine's own task did: nothing that the test waits for would come.
    pub fn assert_alive(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(tasks.try_join_next().is_none(), "a machine's task ended");
    }

    /// Boot scripts that all of them got so far: boots that were begun.
    pub fn scripts(&self) -> u32 {
        lock(&self.memory).values().map(|memory| memory.scripts).sum()
    }

    /// What a machine's present or last boot was given.
    pub fn given(&self, name: &str) -> Option<Given> {
        lock(&self.memory)[name].given.clone()
    }
}

fn lock(memory: &Mutex<BTreeMap<String, Memory>>) -> MutexGuard<'_, BTreeMap<String, Memory>> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    fn outside(&self) -> Outside {
        let state = self.state.lock();
        let machine = &state.machines[&self.name];
        let vlan = state.tag(&format!("{}p0", self.name)).unwrap_or(DEAD_VLAN);
        Outside { is_on: machine.on_since.is_some(), boots: machine.boots, vlan }
    }

    fn note<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(lock(&self.memory).get_mut(&self.name).expect("there"))
    }

    fn note_given(&self, change: impl FnOnce(&mut Given)) {
        self.note(|memory| memory.given.as_mut().map(change));
    }

    fn violation(&self, text: String) {
        self.state.lock().violation(format!("{}: {text}", self.name));
    }

    async fn exist(self) {
        loop {
            let outside = self.outside();
            if outside.is_on {
                self.live(outside).await;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lives until the outside changes, or until it switches itself off.
    async fn live(&self, outside: Outside) {
        let changed = async {
            while self.outside() == outside {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let mut life = Box::pin(async {
            while self.boot(outside.vlan).await.is_err() {
                self.unplug(outside.vlan);
                tokio::time::sleep(PAUSE).await;
            }
        });
        let off = tokio::select! {
            () = &mut life => true,
            () = changed => false,
        };
        self.unplug(outside.vlan);
        drop(life);
        self.note_given(|given| given.has_disk = false);
        if off && self.outside() == outside {
            self.state.lock().power_off(&self.name);
        }
    }

    /// Takes an address. Not asynchronous, so that it is never half done.
    fn plug(&self, address: Ipv4Addr, vlan: u16) {
        sh(&format!("ip addr add {address}/32 dev node{vlan}"));
        self.note(|memory| memory.address = Some(address));
    }

    fn unplug(&self, vlan: u16) {
        if let Some(address) = self.note(|memory| memory.address.take()) {
            sh(&format!("ip addr del {address}/32 dev node{vlan}"));
        }
    }

    /// DISCOVER and REQUEST.
    async fn lease(&self, vlan: u16, client: &[dhcp::Option<'_>]) -> Result<Lease, Failed> {
        let device = format!("node{vlan}");
        let offer = dhcp::ask(&device, self.mac, DISCOVER, client, ANSWER).await?;
        let offer = offer.filter(|offer| offer.kind == OFFER).ok_or(Failed)?;
        let (address, server) = (offer.address.octets(), offer.server.octets());
        let mut wanted = client.to_vec();
        wanted.extend([(50, &address[..]), (54, &server[..])]);
        let lease = dhcp::ask(&device, self.mac, REQUEST, &wanted, ANSWER).await?;
        lease.filter(|lease| lease.kind == ACK && lease.address == offer.address).ok_or(Failed)
    }

    /// One boot, from the firmware's first word to the end of the system that it started.
    async fn boot(&self, vlan: u16) -> Result<(), Failed> {
        let lease = self.lease(vlan, BIOS).await?;
        if lease.file != "undionly.kpxe" {
            return Err(Failed);
        }
        let lease = self.lease(vlan, IPXE).await?;
        let (me, server) = (lease.address, lease.server);
        self.plug(me, vlan);
        let get = async |path: &str| match http::get(me, server, path).await? {
            (200, body) => Ok(body),
            (_, _) => Err(Failed),
        };
        if lease.file != format!("http://{server}/boot/script") {
            return Err(Failed);
        }
        let script = get("/boot/script").await?;
        self.note(|memory| memory.scripts += 1);
        // iPXE's own session is never ended in order.
        let account = Account::in_script(&script).ok_or(Failed)?;
        let mut firmware = self.log_in(&account, me, 1).await?;
        firmware.read(0, 0).await?;
        let script = String::from_utf8_lossy(&script);
        let base = format!("http://{server}");
        let mut paths = script.split_whitespace().filter_map(|word| word.strip_prefix(&base));
        let (kernel, initrd) = (paths.next().ok_or(Failed)?, paths.next().ok_or(Failed)?);
        get(kernel).await?;
        get(initrd).await?;
        let initrd = get(paths.next().ok_or(Failed)?).await?;
        let config = agent::config(&initrd).ok_or(Failed)?;
        let account = Account::in_initrd(&initrd).ok_or(Failed)?;
        let given = Given { address: me, config, account, key: None, has_disk: false };
        self.note(|memory| memory.given = Some(given.clone()));
        self.run(&given).await
    }

    /// The system: its disk first, then its agent, until that one is told to switch off.
    async fn run(&self, given: &Given) -> Result<(), Failed> {
        let mut block = Block::AsInImage;
        let mut session = self.disk(given, &mut block).await?;
        let disk = async {
            loop {
                session.until_end().await;
                self.note_given(|given| given.has_disk = false);
                session = self.disk(given, &mut block).await?;
            }
        };
        tokio::select! {
            () = self.serve(given) => Ok(()),
            failed = disk => failed,
        }
    }

    async fn log_in(&self, account: &Account, me: Ipv4Addr, isid: u8) -> Result<Session, Failed> {
        Session::log_in(account, me, isid).await.map_err(|error| {
            if let LoginError::Refused(status) = error {
                self.violation(format!("its login was refused with {status:#06x}"));
            }
            Failed
        })
    }

    /// A session with its disk, for which it waits as long as it takes. What it wrote there must
    /// still be there; before, what is in the image and nothing else.
    async fn disk(&self, given: &Given, block: &mut Block) -> Result<Session, Failed> {
        loop {
            if let Ok(mut session) = self.log_in(&given.account, given.address, 2).await
                && let Ok(found) = session.read(0, 0).await
            {
                let (image, marked) = (found == [images::DISK.1; BLOCK], found == MARK);
                let right = match *block {
                    Block::AsInImage => image,
                    Block::Either => image || marked,
                    Block::Marked => marked,
                };
                if !right {
                    self.violation(format!("its disk holds {:#x}, {block:?} is right", found[0]));
                }
                if *block != Block::Marked {
                    *block = Block::Either;
                    if session.write(0, 0, &MARK).await.is_ok() {
                        *block = Block::Marked;
                    }
                }
                if *block == Block::Marked {
                    self.note_given(|given| given.has_disk = true);
                    return Ok(session);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Its agent, until it is told to switch off.
    async fn serve(&self, given: &Given) {
        let mut credential = token(&given.config);
        loop {
            let attached =
                Agent::attach(&given.config, Some(given.address), credential.clone()).await;
            match attached {
                Ok(agent) => {
                    credential = agent.key();
                    self.note_given(|given| given.key = Some(agent.key()));
                    if obey(agent).await.is_ok() {
                        return;
                    }
                }
                Err(status) if status.code() == Code::PermissionDenied => {
                    self.violation("its agent was refused".to_owned());
                }
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Does as it is told until it is told to switch off.
async fn obey(mut agent: Agent) -> Result<(), Status> {
    loop {
        match agent.told().await? {
            bootd_message::Body::Membership(membership) => {
                let applied =
                    MembershipApplied { version: membership.version, error: String::new() };
                agent.say(agent_message::Body::MembershipApplied(applied)).await?;
            }
            bootd_message::Body::PhaseOrder(order) => {
                let reached = PhaseReached { phase: order.phase };
                agent.say(agent_message::Body::PhaseReached(reached)).await?;
                if order.phase() == common::Phase::PowerOff {
                    agent.farewell().await;
                    return Ok(());
                }
            }
            bootd_message::Body::Welcome(_) | bootd_message::Body::Poll(_) => {}
        }
    }
}
