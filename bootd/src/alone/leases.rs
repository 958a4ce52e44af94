//! Who has which address of one subnet's pools. Pure: time is given, and nothing here is durable.
//!
//! An offer is a hint, held for a moment and never more often than there are addresses: only a REQUEST
//! makes a lease, and it makes one of every address that is free, offered or not. A flood of DISCOVERs
//! from invented MACs therefore takes no address away from anybody; a flood of whole conversations is
//! bounded by how many new leases a second a subnet, and a switch port, may begin.
//!
//! A client is its MAC (the client identifier changes from firmware to operating system), and gets
//! the address back that it had as long as nobody else needed it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;

use croft_proto::MacAddr;

use super::plan::Pool;

/// How long an offer is held, in ms.
const OFFER_MS: u64 = 10_000;

/// How long an address is left alone that somebody else was found to use, in ms.
const BUSY_MS: u64 = 600_000;

/// How long it counts that an address was probed and nobody answered, in ms.
const PROBED_MS: u64 = 600_000;

/// Addresses probed ahead of need.
const READY: usize = 128;

/// New leases of a subnet: at once, and then per second. A thousand machines may boot together.
const LINK_BURST: u32 = 2048;
const LINK_RATE: u32 = 128;

/// New leases of a switch port that a relay names.
const PORT_BURST: u32 = 16;
const PORT_RATE: u32 = 2;

/// Switch ports remembered.
const MAX_PORTS: usize = 8192;

/// A lease as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub mac: MacAddr,
    pub address: Ipv4Addr,
    /// Seconds since the Unix epoch.
    pub expires: u64,
}

/// What a REQUEST leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// To be kept before it is acknowledged, together with the end of the client's lease of another
    /// address, if it had one.
    Lease(Lease, Option<Lease>),
    /// The address is somebody else's, or none of ours.
    Refused,
    /// Too many new leases: say nothing, it will ask again.
    Later,
}

/// Allows so many at once, and then so many a second.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths.
    tokens: u64,
    at_ms: u64,
}

impl Bucket {
    fn full(burst: u32, now_ms: u64) -> Self {
        Self { tokens: u64::from(burst) * 1000, at_ms: now_ms }
    }

    fn take(&mut self, burst: u32, rate: u32, now_ms: u64) -> bool {
        let grown = now_ms.saturating_sub(self.at_ms).saturating_mul(rate.into());
        self.tokens = self.tokens.saturating_add(grown).min(u64::from(burst) * 1000);
        self.at_ms = now_ms;
        let enough = self.tokens >= 1000;
        if enough {
            self.tokens -= 1000;
        }
        enough
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Leases {
    pools: Vec<Pool>,
    /// Addresses that belong to one client, or to none, whatever leases say.
    reserved: HashMap<Ipv4Addr, Option<MacAddr>>,
    leases: HashMap<MacAddr, Lease>,
    owners: HashMap<Ipv4Addr, MacAddr>,
    /// Leases of addresses that another client may have once they are over: neither kept for one nor
    /// offered to one.
    by_expiry: BTreeSet<(u64, Ipv4Addr)>,
    offers: HashMap<MacAddr, Ipv4Addr>,
    offered: HashMap<Ipv4Addr, MacAddr>,
    /// Offers, the oldest first; some are over already.
    order: VecDeque<(u64, MacAddr, Ipv4Addr)>,
    /// Probed, and when.
    ready: VecDeque<(Ipv4Addr, u64)>,
    /// Never given to anybody.
    fresh: VecDeque<Ipv4Addr>,
    busy: HashMap<Ipv4Addr, u64>,
    bucket: Bucket,
    ports: HashMap<Vec<u8>, Bucket>,
}

impl Leases {
    /// An empty table over these pools.
    pub(crate) fn new(pools: &[Pool], reserved: HashSet<Ipv4Addr>, now_ms: u64) -> Self {
        let reserved: HashMap<_, _> = reserved.into_iter().map(|address| (address, None)).collect();
        let all = pools.iter().flat_map(|p| u32::from(p.first)..=u32::from(p.last));
        let fresh = all.map(Ipv4Addr::from).filter(|a| !reserved.contains_key(a)).collect();
        Self {
            pools: pools.to_vec(),
            reserved,
            leases: HashMap::new(),
            owners: HashMap::new(),
            by_expiry: BTreeSet::new(),
            offers: HashMap::new(),
            offered: HashMap::new(),
            order: VecDeque::new(),
            ready: VecDeque::new(),
            fresh,
            busy: HashMap::new(),
            bucket: Bucket::full(LINK_BURST, now_ms),
            ports: HashMap::new(),
        }
    }

    /// Puts back what an earlier run, or another file, left. False: it is not for this table: its
    /// address is in no pool, or somebody else's.
    pub(crate) fn restore(&mut self, lease: Lease) -> bool {
        let given = self.reserved.get(&lease.address);
        let mine = given.is_none_or(|owner| *owner == Some(lease.mac));
        let fits = self.in_pool(lease.address) && mine;
        if fits {
            self.insert(lease);
        }
        fits
    }

    /// Takes over what a table of an older file knows beside leases: which addresses others use, and
    /// how many leases were begun.
    pub(crate) fn carry(&mut self, older: Self) {
        let Self { busy, bucket, ports, .. } = older;
        let mine = busy.into_iter().filter(|(address, _)| self.in_pool(*address));
        self.busy = mine.collect();
        (self.bucket, self.ports) = (bucket, ports);
    }

    /// All leases, those that have run out included.
    pub(crate) fn all(&self) -> impl Iterator<Item = Lease> + '_ {
        self.leases.values().copied()
    }

    /// A client's lease that has not run out.
    pub(crate) fn held(&self, mac: MacAddr, now_ms: u64) -> Option<Lease> {
        self.leases.get(&mac).copied().filter(|lease| lease.expires > now_ms / 1000)
    }

    /// Keeps an address of the pools for one client, lease or not.
    pub(crate) fn reserve(&mut self, address: Ipv4Addr, mac: MacAddr) {
        self.reserved.entry(address).or_insert(Some(mac));
        self.sort_in(address);
    }

    /// Keeps it no longer for this client, which does not want it.
    pub(crate) fn give_up(&mut self, address: Ipv4Addr, mac: MacAddr) {
        if self.reserved.get(&address) == Some(&Some(mac)) {
            self.reserved.remove(&address);
            self.sort_in(address);
        }
    }

    /// The addresses that are kept for a client, and the client.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (Ipv4Addr, MacAddr)> + '_ {
        self.reserved.iter().filter_map(|(address, mac)| Some((*address, (*mac)?)))
    }

    /// Keeps it no longer.
    pub(crate) fn unreserve(&mut self, address: Ipv4Addr) {
        if matches!(self.reserved.get(&address), Some(Some(_))) {
            self.reserved.remove(&address);
            self.sort_in(address);
            if self.in_pool(address) && !self.owners.contains_key(&address) {
                self.fresh.push_back(address);
            }
        }
    }

    /// An address for a DISCOVER; none if the pools are empty. `wanted` is option 50.
    pub(crate) fn offer(
        &mut self,
        mac: MacAddr,
        wanted: Option<Ipv4Addr>,
        now_ms: u64,
    ) -> Option<Ipv4Addr> {
        self.forget_offers(now_ms);
        if let Some(lease) = self.leases.get(&mac)
            && self.is_free(lease.address, mac, now_ms)
        {
            return Some(lease.address);
        }
        if let Some(address) = self.offers.get(&mac).copied()
            && self.is_free(address, mac, now_ms)
        {
            return Some(address);
        }
        let wanted = wanted.filter(|address| {
            self.is_free(*address, mac, now_ms) && !self.offered.contains_key(address)
        });
        let address = wanted.or_else(|| self.next(mac, now_ms))?;
        self.order.push_back((now_ms + OFFER_MS, mac, address));
        // An older one that is not free any more.
        self.end_offer(mac);
        self.offers.insert(mac, address);
        self.offered.insert(address, mac);
        self.sort_in(address);
        Some(address)
    }

    /// Makes a lease for a REQUEST, or extends it. `port` is the switch port, if a relay named it.
    pub(crate) fn take(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        lease_s: u32,
        port: Option<&[u8]>,
        now_ms: u64,
    ) -> Taken {
        if !self.is_free(address, mac, now_ms) {
            return Taken::Refused;
        }
        let is_new = self.held(mac, now_ms).is_none();
        if is_new && !self.may_begin(port, now_ms) {
            return Taken::Later;
        }
        self.end_offer(mac);
        if let Some(other) = self.offered.get(&address).copied() {
            self.end_offer(other);
        }
        let other = self.leases.get(&mac).filter(|lease| lease.address != address);
        let ended = other.map(|lease| Lease { expires: 0, ..*lease });
        let lease = Lease { mac, address, expires: now_ms / 1000 + u64::from(lease_s) };
        self.insert(lease);
        Taken::Lease(lease, ended)
    }

    /// Extends the lease of a client that is known to be there though it does not ask, once half of it
    /// is over: the lease to be kept.
    pub(crate) fn extend(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        lease_s: u32,
        now_ms: u64,
    ) -> Option<Lease> {
        let half = now_ms / 1000 + u64::from(lease_s) / 2;
        let other = self.leases.get(&mac).is_some_and(|lease| lease.address != address);
        let fresh = self.leases.get(&mac).is_some_and(|lease| lease.expires > half);
        if other || fresh || !self.is_free(address, mac, now_ms) {
            return None;
        }
        let lease = Lease { mac, address, expires: now_ms / 1000 + u64::from(lease_s) };
        self.insert(lease);
        Some(lease)
    }

    /// Whether this client may have this address, as far as the table knows.
    pub(crate) fn is_free(&self, address: Ipv4Addr, mac: MacAddr, now_ms: u64) -> bool {
        let expired = |owner: &MacAddr| {
            self.leases.get(owner).is_none_or(|lease| lease.expires <= now_ms / 1000)
        };
        self.in_pool(address)
            && self.reserved.get(&address).is_none_or(|owner| *owner == Some(mac))
            && self.busy.get(&address).is_none_or(|until| *until <= now_ms)
            && self.owners.get(&address).is_none_or(|owner| *owner == mac || expired(owner))
    }

    /// Ends a client's lease (RELEASE): the lease to be kept as over. It stays the client's as long
    /// as nobody needs it.
    pub(crate) fn release(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        now_ms: u64,
    ) -> Option<Lease> {
        let lease = self.held(mac, now_ms).filter(|lease| lease.address == address)?;
        let over = Lease { expires: now_ms / 1000, ..lease };
        self.insert(over);
        Some(over)
    }

    /// Sets an address aside that its client found in use (DECLINE). Only who was given it may say so.
    pub(crate) fn decline(
        &mut self,
        mac: MacAddr,
        address: Ipv4Addr,
        now_ms: u64,
    ) -> Option<Lease> {
        let mine = self.leases.get(&mac).is_some_and(|lease| lease.address == address)
            || self.offers.get(&mac) == Some(&address);
        if !mine {
            return None;
        }
        self.busy.insert(address, now_ms + BUSY_MS);
        self.end_offer(mac);
        let over = Lease { mac, address, expires: 0 };
        if self.leases.get(&mac).is_some_and(|lease| lease.address == address) {
            self.remove(mac);
        }
        Some(over)
    }

    /// Addresses to be probed now, up to `most`.
    pub(crate) fn probe_next(&mut self, most: usize, now_ms: u64) -> Vec<Ipv4Addr> {
        // Probed too long ago to count: once more.
        self.ready.retain(|(_, at)| now_ms.saturating_sub(*at) < PROBED_MS);
        self.busy.retain(|_, until| *until > now_ms);
        let wanted = READY.saturating_sub(self.ready.len()).min(most);
        let mut list = Vec::new();
        while list.len() < wanted {
            let Some(address) = self.fresh.pop_front() else { break };
            let free = !self.reserved.contains_key(&address)
                && !self.busy.contains_key(&address)
                && !self.owners.contains_key(&address)
                && !self.offered.contains_key(&address);
            if free {
                list.push(address);
            }
        }
        if list.len() < wanted {
            self.refill();
        }
        list
    }

    /// What a probe found.
    pub(crate) fn probed(&mut self, address: Ipv4Addr, in_use: bool, now_ms: u64) {
        if in_use {
            self.busy.insert(address, now_ms + BUSY_MS);
        } else {
            self.ready.push_back((address, now_ms));
        }
    }

    /// When the never-given addresses run out, finds those that were passed over: in use by others for
    /// a while, or probed long ago.
    fn refill(&mut self) {
        if !self.fresh.is_empty() {
            return;
        }
        let ready: HashSet<Ipv4Addr> = self.ready.iter().map(|(address, _)| *address).collect();
        let all = self.pools.iter().flat_map(|p| u32::from(p.first)..=u32::from(p.last));
        let free = all.map(Ipv4Addr::from).filter(|address| {
            !self.reserved.contains_key(address)
                && !self.owners.contains_key(address)
                && !self.busy.contains_key(address)
                && !self.offered.contains_key(address)
                && !ready.contains(address)
        });
        self.fresh = free.collect();
    }

    /// An address that nobody has: a probed one, one never given, the one whose lease ran out first,
    /// and at last the one that was offered first and never taken.
    fn next(&mut self, mac: MacAddr, now_ms: u64) -> Option<Ipv4Addr> {
        while let Some((address, _)) = self.ready.pop_front() {
            if self.is_free(address, mac, now_ms) && !self.offered.contains_key(&address) {
                return Some(address);
            }
        }
        while let Some(address) = self.fresh.pop_front() {
            if self.is_free(address, mac, now_ms) && !self.offered.contains_key(&address) {
                return Some(address);
            }
        }
        let over = ..(now_ms / 1000 + 1, Ipv4Addr::UNSPECIFIED);
        let mut expired = self.by_expiry.range(over).map(|(_, address)| *address);
        let found = expired.find(|address| self.is_free(*address, mac, now_ms));
        if found.is_some() {
            return found;
        }
        while let Some((_, other, address)) = self.order.pop_front() {
            if self.offers.get(&other) == Some(&address) {
                self.end_offer(other);
                if self.is_free(address, mac, now_ms) {
                    return Some(address);
                }
            }
        }
        None
    }

    fn in_pool(&self, address: Ipv4Addr) -> bool {
        self.pools.iter().any(|pool| pool.contains(address))
    }

    /// Whether one more may begin: counts it, for its subnet and its switch port.
    pub(crate) fn may_begin(&mut self, port: Option<&[u8]>, now_ms: u64) -> bool {
        if let Some(port) = port {
            if self.ports.len() >= MAX_PORTS && !self.ports.contains_key(port) {
                // A bucket that nobody took from for long is as good as a new one.
                self.ports.retain(|_, bucket| now_ms.saturating_sub(bucket.at_ms) < 60_000);
                if self.ports.len() >= MAX_PORTS {
                    return false;
                }
            }
            let bucket = self.ports.entry(port.to_vec());
            let bucket = bucket.or_insert_with(|| Bucket::full(PORT_BURST, now_ms));
            if !bucket.take(PORT_BURST, PORT_RATE, now_ms) {
                return false;
            }
        }
        self.bucket.take(LINK_BURST, LINK_RATE, now_ms)
    }

    fn forget_offers(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(until, _, _)| *until <= now_ms) {
            let Some((_, mac, address)) = self.order.pop_front() else { return };
            if self.offers.get(&mac) == Some(&address) {
                self.end_offer(mac);
                if !self.owners.contains_key(&address) {
                    self.ready.push_back((address, now_ms));
                }
            }
        }
    }

    fn end_offer(&mut self, mac: MacAddr) {
        if let Some(address) = self.offers.remove(&mac) {
            self.offered.remove(&address);
            self.sort_in(address);
        }
    }

    fn insert(&mut self, lease: Lease) {
        match self.leases.get(&lease.mac) {
            // It keeps its address, which is therefore nothing to be given to others.
            Some(older) if older.address == lease.address => {
                self.by_expiry.remove(&(older.expires, older.address));
            }
            _ => self.remove(lease.mac),
        }
        if let Some(other) = self.owners.insert(lease.address, lease.mac)
            && other != lease.mac
            && let Some(older) = self.leases.remove(&other)
        {
            self.by_expiry.remove(&(older.expires, older.address));
        }
        self.leases.insert(lease.mac, lease);
        self.sort_in(lease.address);
    }

    fn remove(&mut self, mac: MacAddr) {
        if let Some(older) = self.leases.remove(&mac) {
            self.owners.remove(&older.address);
            self.by_expiry.remove(&(older.expires, older.address));
            if !self.reserved.contains_key(&older.address) {
                self.fresh.push_back(older.address);
            }
        }
    }

    /// Lists an address by the end of its lease, or not, after a change.
    fn sort_in(&mut self, address: Ipv4Addr) {
        let owner = self.owners.get(&address);
        let Some(lease) = owner.and_then(|mac| self.leases.get(mac)).copied() else { return };
        if self.reserved.contains_key(&address) || self.offered.contains_key(&address) {
            self.by_expiry.remove(&(lease.expires, address));
        } else {
            self.by_expiry.insert((lease.expires, address));
        }
    }
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
