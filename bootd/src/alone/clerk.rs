//! Answers DHCP where a file says what machines become: who asks, which address it gets, what it is
//! to boot, in this order.

mod place;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use croft_proto::{CircuitId, NodeName, RoleName, SegmentName};

use super::identity::{Places, Who, recognise};
use super::leases::{Lease, Leases, Taken};
use super::plan::{Link, Machine, Plan};
use super::rules::{Family, Sender};
use super::state::Want;
use super::tables::Tables;
use super::{Ledger, Registrar};
use crate::boot::decide::{self, Answer, Standing, Terms};
use crate::boot::{Desk, Records};
use crate::desired::Assignment;
use crate::dhcp::packet::{Client, Kind, Reply, ReplyKind, Request};
use crate::events::Notice;
use crate::keeper::Sessions;

/// How long a script waits for its node's root volume to be made.
const PREPARATION: Duration = Duration::from_secs(5);

/// What a clerk works with.
#[derive(Debug)]
pub(crate) struct ClerkParts {
    pub plan: Arc<ArcSwap<Plan>>,
    pub desk: Arc<Desk>,
    pub records: Arc<Records>,
    pub ledger: Ledger,
    pub registrar: Registrar,
    pub sessions: Arc<dyn Sessions>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Clerk {
    pub(super) parts: ClerkParts,
    pub(super) tables: Mutex<Tables>,
    places: Mutex<Places>,
    /// Addresses whose assignment is being written down.
    coming: Mutex<HashSet<(SegmentName, Ipv4Addr)>>,
}

/// A request with all that was found out about it.
#[derive(Clone, Copy)]
struct Case<'a> {
    link: &'a Link,
    request: &'a Request,
    circuit: Option<&'a CircuitId>,
    node: &'a NodeName,
    machine: Option<&'a Machine>,
    /// One of its NICs that do not boot: it gets an address of the pools, and nothing that is the
    /// node's.
    other_nic: bool,
    /// What it is to boot, if it asks for that and a rule says so.
    role: Option<&'a RoleName>,
}

impl Clerk {
    /// A clerk with the leases of an earlier run.
    pub(crate) fn new(parts: ClerkParts, leases: Vec<Lease>) -> Self {
        let tables = Mutex::new(Tables::new(&parts.plan.load(), leases, &[]));
        let (places, coming) = (Mutex::default(), Mutex::default());
        let clerk = Self { parts, tables, places, coming };
        // Before anybody asks: who serves already keeps its address.
        clerk.reserve();
        clerk
    }

    /// Where what is not DHCP is asked.
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.parts.desk
    }

    /// Answers a request that arrived on the leg `segment`; none: say nothing.
    pub(crate) async fn dhcp(
        self: &Arc<Self>,
        segment: &SegmentName,
        request: &Request,
    ) -> Option<Reply> {
        let plan = self.parts.plan.load_full();
        let link = link_of(&plan, segment, request)?;
        let circuit = request.circuit().and_then(|id| CircuitId::new(id).ok());
        let circuit = circuit.as_ref();
        let now = now_ms();
        let who = match recognise(&plan.machines, request.mac, request.uuid, circuit) {
            who @ (Who::OtherNic(_) | Who::Machine(_, Some(_))) => who,
            who => match self.serving(&plan, link, request) {
                Some(machine) => Who::Machine(machine.name.clone(), Some(machine)),
                None => who,
            },
        };
        let (node, machine, other_nic) = match who {
            Who::Machine(node, machine) => (node, machine, false),
            Who::OtherNic(node) => (node, None, true),
            Who::Refused(node, why) => {
                self.tell("refused", &link.segment, Some(&node), why.to_owned());
                return None;
            }
        };
        let doubled = lock(&self.places).is_elsewhere(request.mac, &link.name, circuit, now);
        if doubled || (!other_nic && self.runs_elsewhere(&node, link)) {
            let text =
                format!("{} is in two places at once: it asked on {}, too", request.mac, link.name);
            self.tell("two-places", &link.segment, Some(&node), text);
            return None;
        }
        let sender = Sender {
            link: &link.name,
            mac: request.mac,
            circuit,
            uuid: request.uuid,
            arch: request.architecture.map(Family::of),
            machine,
        };
        let asks = !other_nic && request.client != Client::Plain;
        let rule = if asks { plan.rules.find(&sender) } else { None };
        let role = rule.map(|rule| &rule.role);
        let case = Case { link, request, circuit, node: &node, machine, other_nic, role };
        let answer = if plan.segments.get(&link.segment).is_some_and(|s| s.leg.proxy) {
            self.beside(case).await
        } else {
            match request.kind {
                Kind::Discover => self.discover(case).await,
                Kind::Request => self.request(case).await,
                Kind::Decline => self.decline(case).await,
                Kind::Release => self.release(case).await,
                Kind::Inform if link.subnet.contains(&request.ciaddr) => {
                    Some(Answer::Reply(decide::inform(&terms(link))))
                }
                Kind::Inform => None,
            }
        };
        // A REQUEST beside another server is mostly to that one.
        let others = answer.is_none() && request.kind == Kind::Request;
        if role.is_some() && !others {
            self.parts.desk.note_dhcp(&node, request, answer.as_ref());
        }
        match answer? {
            Answer::Reply(reply) => Some(reply),
            Answer::NoProgram(number) => {
                let text =
                    format!("its firmware has architecture {number}: no boot program for it");
                self.tell("no-boot-program", &link.segment, Some(&node), text);
                None
            }
            Answer::Silence | Answer::AddressInUse => None,
        }
    }

    async fn discover(self: &Arc<Self>, case: Case<'_>) -> Option<Answer> {
        let (request, link) = (case.request, case.link);
        let mut held = self.held(case);
        if held.is_some() && request.client != Client::Plain {
            held = self.judge_anew(case, held, false).await;
        }
        let address = match self.own_address(case, held.as_ref()) {
            Some(own) if self.is_contested(case, own) => return None,
            Some(own) => own,
            None => {
                if case.is_stranger() && !link.strangers {
                    self.tell_stranger(case);
                    return None;
                }
                let wanted = request.requested;
                let offered = self.with_table(link, |t| t.offer(request.mac, wanted, now_ms()));
                match offered {
                    Some(Some(address)) => address,
                    Some(None) | None => {
                        let text = format!("no address is left in the pools of {}", link.name);
                        self.tell("pool-exhausted", &link.segment, None, text);
                        return None;
                    }
                }
            }
        };
        let standing = match (case.role, &held) {
            (None, _) => Standing::Bare,
            // Nothing that an offer says is secret.
            (Some(_), None) => Standing::Open,
            (Some(_), Some(held)) => self.parts.desk.standing(held, request).await?,
        };
        if case.role.is_none() && request.client != Client::Plain {
            self.tell_stranger(case);
        }
        Some(decide::lease(ReplyKind::Offer, request, address, &terms(link), standing))
    }

    /// A machine that serves already begins another boot: what the file says now counts, unless its
    /// last boot is not over.
    async fn judge_anew(
        &self,
        case: Case<'_>,
        held: Option<Assignment>,
        proxy: bool,
    ) -> Option<Assignment> {
        if !self.parts.desk.is_over(case.node) {
            return held;
        }
        match case.role {
            Some(role) => {
                let address = match &held {
                    // It is the other server that gives it one, and that may be the same again.
                    Some(held) if proxy => held.address,
                    held => self.own_address(case, held.as_ref())?,
                };
                self.assign(case, role, address).await;
            }
            None => {
                self.parts.registrar.withdraw(vec![case.node.clone()]).await;
            }
        }
        self.held(case)
    }

    async fn assign(&self, case: Case<'_>, role: &RoleName, address: Ipv4Addr) -> bool {
        if self.is_contested(case, address) {
            return false;
        }
        let known =
            case.machine.map(|machine| machine.macs.clone()).filter(|macs| !macs.is_empty());
        let want = Want {
            node: case.node.clone(),
            macs: known.unwrap_or_else(|| vec![case.request.mac]),
            uuid: case.machine.and_then(|machine| machine.uuid),
            segment: case.link.segment.clone(),
            address,
            role: role.clone(),
        };
        let place = (want.segment.clone(), address);
        lock(&self.coming).insert(place.clone());
        let assigned = self.parts.registrar.assign(want).await;
        lock(&self.coming).remove(&place);
        if !assigned {
            let text = format!("could not be made a {role}; the log has the reason");
            self.tell("not-assigned", &case.link.segment, Some(case.node), text);
        }
        assigned
    }

    /// RFC 2131 section 4.3.2; which of the client's states it is follows from what it fills in.
    async fn request(self: &Arc<Self>, case: Case<'_>) -> Option<Answer> {
        let (request, link) = (case.request, case.link);
        if request.server.is_some_and(|chosen| chosen != link.server) {
            return None;
        }
        let wanted = match request.requested {
            Some(requested) => requested,
            None if request.ciaddr != Ipv4Addr::UNSPECIFIED => request.ciaddr,
            None => return None,
        };
        let nak = || Some(Answer::Reply(decide::nak(link.server)));
        let held = self.held(case);
        let fixed = case.machine.and_then(|machine| machine.address);
        let lease_s = terms(link).lease_of(request.client);
        let port = case.circuit.map(|circuit| circuit.as_bytes());
        let take = || {
            self.with_table(link, |table| table.take(request.mac, wanted, lease_s, port, now_ms()))
        };
        match self.own_address(case, held.as_ref()) {
            // It runs there: whether the pools have the address or not.
            _ if fixed != Some(wanted) && self.place(case) == Some(wanted) => {
                if let Some(Taken::Lease(lease, ended)) = take()
                    && !self.parts.ledger.keep_instead(lease, ended).await
                {
                    return None;
                }
            }
            Some(own) if own != wanted => return nak(),
            Some(own) if self.is_contested(case, own) => return None,
            // A lease that the file gives needs no writing down.
            Some(own) if fixed == Some(own) => {}
            _ => {
                if !link.subnet.contains(&wanted) {
                    return nak();
                }
                if case.is_stranger() && held.is_none() && !link.strangers {
                    return None;
                }
                match take() {
                    Some(Taken::Lease(lease, ended)) => {
                        if !self.parts.ledger.keep_instead(lease, ended).await {
                            return None;
                        }
                    }
                    // In the subnet and not in our pools: perhaps another server's. A client in state
                    // SELECTING or with an address of ours is told.
                    Some(Taken::Refused) if request.server.is_some() || is_pooled(link, wanted) => {
                        return nak();
                    }
                    Some(Taken::Refused | Taken::Later) | None => return None,
                }
            }
        }
        let standing = match (case.role, held) {
            (None, _) => Standing::Bare,
            (Some(_), Some(held)) if held.address == wanted => {
                self.parts.desk.standing(&held, request).await?
            }
            (Some(role), _) => {
                if !self.assign(case, role, wanted).await {
                    return None;
                }
                Standing::Open
            }
        };
        Some(decide::lease(ReplyKind::Ack, request, wanted, &terms(link), standing))
    }

    async fn decline(&self, case: Case<'_>) -> Option<Answer> {
        let address = case.request.requested?;
        let mac = case.request.mac;
        let declined = self.with_table(case.link, |t| {
            t.give_up(address, mac);
            t.decline(mac, address, now_ms())
        });
        let lease = declined??;
        let text = format!("{address} is used by somebody else on {}", case.link.name);
        self.tell("address-in-use", &case.link.segment, Some(case.node), text);
        self.parts.ledger.keep(lease).await;
        if self.held(case).is_some_and(|held| held.address == address) {
            self.parts.registrar.withdraw(vec![case.node.clone()]).await;
        }
        None
    }

    async fn release(&self, case: Case<'_>) -> Option<Answer> {
        let (mac, address) = (case.request.mac, case.request.ciaddr);
        let lease = self.with_table(case.link, |t| t.release(mac, address, now_ms()))??;
        self.parts.ledger.keep(lease).await;
        None
    }

    /// Beside somebody else's DHCP server: says what to boot, and learns addresses from what clients
    /// tell that server.
    async fn beside(self: &Arc<Self>, case: Case<'_>) -> Option<Answer> {
        let (request, server) = (case.request, case.link.server);
        let role = case.role?;
        let mut held = self.held(case);
        match request.kind {
            Kind::Discover => {
                if held.is_some() {
                    held = self.judge_anew(case, held, true).await;
                }
                if let Some(held) = &held {
                    self.parts.desk.standing(held, request).await?;
                }
                Some(decide::proxy(ReplyKind::Offer, request, server))
            }
            Kind::Request | Kind::Inform => {
                let told = request.requested.filter(|_| request.kind == Kind::Request);
                let address = told.unwrap_or(request.ciaddr);
                let other = held.as_ref().is_none_or(|held| held.address != address);
                let usable = address != server
                    && case.link.subnet.contains(&address)
                    && address != case.link.subnet.network()
                    && address != case.link.subnet.broadcast();
                let other = other && usable && self.parts.desk.is_over(case.node);
                if other && (held.is_some() || self.may_begin(case)) {
                    self.assign(case, role, address).await;
                }
                // On port 67 this was for the other server; on 4011 it is for us.
                request.to_boot_server.then(|| decide::proxy(ReplyKind::Ack, request, server))
            }
            Kind::Decline | Kind::Release => None,
        }
    }

    /// Whether a machine that serves nothing yet may begin to, beside another server whose leases limit
    /// nobody.
    fn may_begin(&self, case: Case<'_>) -> bool {
        let port = case.circuit.map(|circuit| circuit.as_bytes());
        let may = || self.with_table(case.link, |table| table.may_begin(port, now_ms()));
        case.machine.is_some() || may() == Some(true)
    }

    /// Waits until the node at `source` can be given its script: its assignment may be on its way to
    /// the disk, and its root volume in the making.
    pub(crate) async fn settled(&self, segment: &SegmentName, source: IpAddr) {
        let IpAddr::V4(source) = source.to_canonical() else { return };
        let place = (segment.clone(), source);
        let mut desired = self.parts.desk.watch_desired();
        let mut boots = self.parts.records.watch();
        let wait = async {
            loop {
                desired.borrow_and_update();
                boots.borrow_and_update();
                let now = self.parts.desk.desired();
                let ready = match now.assignment_at(segment, source) {
                    None => !lock(&self.coming).contains(&place),
                    Some(held) => self
                        .parts
                        .records
                        .get(&held.node)
                        .is_none_or(|b| b.prepared || !b.is_open()),
                };
                if ready {
                    return;
                }
                tokio::select! {
                    Ok(()) = desired.changed() => {}
                    Ok(()) = boots.changed() => {}
                    // What is on its way may turn out impossible, which changes neither.
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        };
        // Too late: whoever asks is told that nothing is there, and asks again.
        let _ = tokio::time::timeout(PREPARATION, wait).await;
    }

    /// Addresses of a subnet to be probed now.
    pub(super) fn probe_next(&self, link: &Link, most: usize) -> Vec<Ipv4Addr> {
        self.with_table(link, |table| table.probe_next(most, now_ms())).unwrap_or_default()
    }

    /// What a probe found.
    pub(super) fn probed(&self, link: &Link, address: Ipv4Addr, in_use: bool) {
        self.with_table(link, |table| table.probed(address, in_use, now_ms()));
        if in_use {
            let text = format!("{address} of a pool is used by somebody that has no lease for it");
            self.tell("address-in-use", &link.segment, None, text);
        }
    }

    /// The file that holds now.
    pub(super) fn plan(&self) -> Arc<Plan> {
        self.parts.plan.load_full()
    }

    fn with_table<T>(&self, link: &Link, work: impl FnOnce(&mut Leases) -> T) -> Option<T> {
        lock(&self.tables).get_mut(&link.name).map(work)
    }

    fn tell_stranger(&self, case: Case<'_>) {
        let text =
            format!("{} asked for something to boot, and no rule matches it", case.request.mac);
        if case.request.client != Client::Plain {
            self.tell("no-rule", &case.link.segment, Some(case.node), text);
        }
    }

    fn tell(
        &self,
        kind: &'static str,
        segment: &SegmentName,
        node: Option<&NodeName>,
        text: String,
    ) {
        let subject = node.map_or_else(|| segment.to_string(), NodeName::to_string);
        let segment = Some(segment.clone());
        let notice = Notice { kind, node: node.cloned(), segment, farm: None, text };
        self.parts.desk.events().limited(&subject, notice);
    }
}

impl Case<'_> {
    /// Whether neither a rule nor the file knows it.
    fn is_stranger(&self) -> bool {
        self.role.is_none() && self.machine.is_none() && !self.other_nic
    }
}

pub(super) fn is_pooled(link: &Link, address: Ipv4Addr) -> bool {
    link.pools.iter().any(|pool| pool.contains(address))
}

/// The subnet that a request is about: the relay's word first (RFC 3527 section 3), then its address,
/// then that of a client that renews through a router.
fn link_of<'p>(plan: &'p Plan, segment: &SegmentName, request: &Request) -> Option<&'p Link> {
    let selected = request.link_selection();
    let relay = Some(request.giaddr).filter(|giaddr| *giaddr != Ipv4Addr::UNSPECIFIED);
    match selected.or(relay) {
        Some(address) => plan.link_of(segment, address),
        None => plan.link_of(segment, request.ciaddr).or_else(|| plan.own_link(segment)),
    }
}

/// What every client of a subnet is told.
fn terms(link: &Link) -> Terms {
    let mut more = Vec::new();
    more.extend(link.gateway.map(|gateway| (3, gateway.octets().to_vec())));
    if !link.dns.is_empty() {
        more.push((6, link.dns.iter().flat_map(|dns| dns.octets()).collect()));
    }
    more.extend(link.domain.as_ref().map(|domain| (15, domain.0.as_bytes().to_vec())));
    more.push((28, link.subnet.broadcast().octets().to_vec()));
    Terms { server: link.server, subnet: link.subnet, lease_s: link.lease_s, more }
}

pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "clerk_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "life_tests.rs"]
mod life_tests;
