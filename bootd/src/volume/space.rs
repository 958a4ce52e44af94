//! Who may take how much of the store: quotas and reserves of farms, and when to tell.
//!
//! What counts is blocks that volumes keep of their own (4096 bytes each; snapshots too), not
//! their sizes, which are promises. The image below a volume is nobody's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use croft_proto::FarmName;

use super::Watcher;
use super::observer::{Observer, Report};

/// What one farm may take of a volume store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Its volumes keep at most this much; `u64::MAX` for no limit.
    pub most: u64,
    /// Whoever else fills the store, the farm still gets this much.
    pub reserve: u64,
    /// When its volumes keep this much, an event and a unit attention tell, once until they keep
    /// less again. `u64::MAX` for never.
    pub warn_at: u64,
}

impl Quota {
    /// No limit, no reserve, no warning.
    pub const NONE: Self = Self { most: u64::MAX, reserve: 0, warn_at: u64::MAX };
}

/// Why bytes were not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// The farm's quota is used up.
    Quota,
    /// The store is full, or what is left is reserved for others.
    Store,
}

#[derive(Debug)]
struct Farm {
    quota: Quota,
    used: u64,
    warned: bool,
}

impl Default for Farm {
    fn default() -> Self {
        Self { quota: Quota::NONE, used: 0, warned: false }
    }
}

/// The sums, without any lock or disk. Volumes of no farm share one account.
#[derive(Debug, Default)]
struct Books {
    farms: BTreeMap<Option<FarmName>, Farm>,
    /// Bytes that the store can still give, by the last look less what was given since.
    free: u64,
    /// Bytes given since that look.
    given: u64,
}

impl Books {
    /// What is left of the other farms' reserves.
    fn reserved_but_for(&self, farm: &Option<FarmName>) -> u64 {
        let others = self.farms.iter().filter(|(name, _)| *name != farm);
        let left = others.map(|(_, other)| other.quota.reserve.saturating_sub(other.used));
        left.fold(0, u64::saturating_add)
    }

    /// Gives `bytes` to a farm, or says why not. Whether its warning is due comes with it.
    fn take(&mut self, farm: &Option<FarmName>, bytes: u64) -> Result<bool, Shortage> {
        let reserved = self.reserved_but_for(farm);
        let account = self.farms.entry(farm.clone()).or_default();
        let used = account.used.saturating_add(bytes);
        if used > account.quota.most {
            return Err(Shortage::Quota);
        }
        // Within its reserve a farm competes with nobody, but the disk must have the room.
        let free = if used <= account.quota.reserve {
            self.free
        } else {
            self.free.saturating_sub(reserved)
        };
        if bytes > free {
            return Err(Shortage::Store);
        }
        account.used = used;
        self.free -= bytes;
        self.given = self.given.saturating_add(bytes);
        let due = used >= account.quota.warn_at && !account.warned;
        account.warned |= due;
        Ok(due)
    }

    fn give(&mut self, farm: &Option<FarmName>, bytes: u64) {
        let account = self.farms.entry(farm.clone()).or_default();
        account.used = account.used.saturating_sub(bytes);
        account.warned &= account.used >= account.quota.warn_at;
        self.free = self.free.saturating_add(bytes);
    }

    /// Counts what is there already: no limit is asked.
    fn count(&mut self, farm: &Option<FarmName>, bytes: u64) {
        let account = self.farms.entry(farm.clone()).or_default();
        account.used = account.used.saturating_add(bytes);
    }

    fn set(&mut self, quotas: &BTreeMap<FarmName, Quota>) {
        for (name, farm) in &mut self.farms {
            let quota = name.as_ref().and_then(|name| quotas.get(name));
            farm.quota = quota.copied().unwrap_or(Quota::NONE);
            farm.warned &= farm.used >= farm.quota.warn_at;
        }
        for (name, quota) in quotas {
            self.farms.entry(Some(name.clone())).or_default().quota = *quota;
        }
    }
}

/// What a farm has and may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FarmUsage {
    /// Bytes that its volumes keep.
    pub used: u64,
    /// What it may keep.
    pub quota: Quota,
}

/// Bytes that the store keeps for itself: logs and maps, so that a full store can still flush and
/// unmap.
const KEEP: u64 = 64 << 20;

/// With so much free, some bytes that are not counted yet hurt nobody.
const PLENTY: u64 = 4 << 30;

/// After this many bytes the disk is asked again how much is free; others may write to it, too.
const LOOK_AFTER: u64 = 64 << 20;

/// Asks the disk how many bytes are free; `None` if it does not say.
type Look = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// Who is told about which farm.
type Watching = (Option<FarmName>, Weak<dyn Watcher>);

/// The books of a store.
pub(crate) struct Space {
    books: Mutex<Books>,
    look: Look,
    observer: Arc<Observer>,
    watchers: Mutex<Vec<Watching>>,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("books", &self.books).finish_non_exhaustive()
    }
}

impl Space {
    /// Without quotas. `look` is asked for what the disk has free.
    pub fn new(
        observer: Arc<Observer>,
        look: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        let books = Books { given: LOOK_AFTER, ..Books::default() };
        Self {
            books: Mutex::new(books),
            look: Box::new(look),
            observer,
            watchers: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        // Sums are changed in one step each.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, farm: &Option<FarmName>, bytes: u64) -> Result<bool, Shortage> {
        let mut books = self.lock();
        if books.given < LOOK_AFTER {
            let taken = books.take(farm, bytes);
            if taken != Err(Shortage::Store) {
                return taken;
            }
        }
        // A disk that does not say is one that tells by itself when it is full.
        books.free = (self.look)().map_or(u64::MAX, |free| free.saturating_sub(KEEP));
        books.given = 0;
        books.take(farm, bytes)
    }

    /// Tells a farm's watchers that its threshold is reached. Called with a volume's locks held.
    fn warn(&self, farm: &Option<FarmName>) {
        self.observer.tell(Report::Threshold { farm: farm.clone() });
        let watchers: Vec<_> = {
            let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
            watchers.retain(|(_, watcher)| watcher.strong_count() > 0);
            let mine = watchers.iter().filter(|(name, _)| name == farm);
            mine.filter_map(|(_, watcher)| watcher.upgrade()).collect()
        };
        watchers.iter().for_each(|watcher| watcher.threshold_reached());
    }

    /// Replaces all quotas.
    pub fn set_quotas(&self, quotas: &BTreeMap<FarmName, Quota>) {
        self.lock().set(quotas);
    }

    /// Every farm that has anything or may not have everything.
    pub fn farms(&self) -> BTreeMap<Option<FarmName>, FarmUsage> {
        let books = self.lock();
        let farm = |farm: &Farm| FarmUsage { used: farm.used, quota: farm.quota };
        books.farms.iter().map(|(name, entry)| (name.clone(), farm(entry))).collect()
    }
}

/// What one layer keeps. When nobody holds it any more, its bytes are given back.
#[derive(Debug)]
pub(crate) struct Usage {
    space: Arc<Space>,
    farm: Option<FarmName>,
    bytes: AtomicU64,
}

impl Usage {
    /// Charged to a farm, or to the account of volumes without one.
    pub fn of(space: Arc<Space>, farm: Option<FarmName>) -> Arc<Self> {
        Arc::new(Self { space, farm, bytes: AtomicU64::new(0) })
    }

    /// Bytes kept now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes more.
    pub fn take(&self, bytes: u64) -> Result<(), Shortage> {
        match self.space.take(&self.farm, bytes) {
            Ok(false) => {}
            Ok(true) => self.space.warn(&self.farm),
            Err(shortage) => {
                let quota = shortage == Shortage::Quota;
                let farm = self.farm.clone();
                self.space.observer.tell(Report::Refused { farm, quota });
                return Err(shortage);
            }
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the farm has no limit, and the store room that is reserved for nobody: only then may
    /// the disk be used for what is not counted.
    pub fn has_plenty(&self) -> bool {
        let books = self.space.lock();
        let limited = books.farms.get(&self.farm).is_some_and(|it| it.quota.most < u64::MAX);
        !limited && books.free.saturating_sub(books.reserved_but_for(&self.farm)) > PLENTY
    }

    /// Gives back.
    pub fn give(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.space.lock().give(&self.farm, bytes);
    }

    /// Lets somebody know when the farm's threshold is reached.
    pub fn watch(&self, watcher: Weak<dyn Watcher>) {
        let mut watchers = self.space.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|(_, watcher)| watcher.strong_count() > 0);
        watchers.push((self.farm.clone(), watcher));
    }

    /// Corrects what was known before the layer was read.
    pub fn set(&self, bytes: u64) {
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        let mut books = self.space.lock();
        books.count(&self.farm, bytes);
        let account = books.farms.entry(self.farm.clone()).or_default();
        account.used = account.used.saturating_sub(before);
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.give(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn farm(name: &str) -> Option<FarmName> {
        Some(name.parse().expect("valid"))
    }

    fn books(free: u64, quotas: &[(&str, Quota)]) -> Books {
        let mut books = Books { free, ..Books::default() };
        let quota = |(name, quota): &(&str, Quota)| (name.parse().expect("valid"), *quota);
        books.set(&quotas.iter().map(quota).collect());
        books
    }

    #[test]
    fn a_quota_stops_its_farm_and_no_other() {
        let mut books = books(1000, &[("a", Quota { most: 100, ..Quota::NONE })]);
        assert_eq!(books.take(&farm("a"), 100), Ok(false));
        assert_eq!(books.take(&farm("a"), 1), Err(Shortage::Quota));
        assert_eq!(books.take(&farm("b"), 500), Ok(false));
        books.give(&farm("a"), 40);
        assert_eq!(books.take(&farm("a"), 40), Ok(false));
    }

    #[test]
    fn a_reserve_is_there_whoever_else_fills_the_store() {
        let mut books = books(1000, &[("a", Quota { reserve: 300, ..Quota::NONE })]);
        assert_eq!(books.take(&farm("b"), 701), Err(Shortage::Store));
        assert_eq!(books.take(&farm("b"), 700), Ok(false));
        assert_eq!(books.take(&None, 1), Err(Shortage::Store));
        assert_eq!(books.take(&farm("a"), 300), Ok(false));
        assert_eq!(books.take(&farm("a"), 1), Err(Shortage::Store));
    }

    #[test]
    fn a_threshold_tells_once_until_it_is_left_again() {
        let mut books = books(1000, &[("a", Quota { warn_at: 50, ..Quota::NONE })]);
        assert_eq!(books.take(&farm("a"), 49), Ok(false));
        assert_eq!(books.take(&farm("a"), 1), Ok(true));
        assert_eq!(books.take(&farm("a"), 1), Ok(false));
        books.give(&farm("a"), 2);
        assert_eq!(books.take(&farm("a"), 1), Ok(true));
    }

    proptest! {
        #[test]
        fn the_books_never_give_more_than_there_is(
            free in 0_u64..1000,
            steps in proptest::collection::vec((0..3_usize, any::<bool>(), 0_u64..400), 0..60),
        ) {
            let quota = Quota { most: 500, reserve: 100, warn_at: 250 };
            let mut books = books(free, &[("a", quota), ("b", quota)]);
            let names = [farm("a"), farm("b"), None];
            let mut used = [0_u64; 3];
            for (who, take, bytes) in steps {
                if take {
                    if books.take(&names[who], bytes).is_ok() {
                        used[who] += bytes;
                    }
                } else {
                    let bytes = bytes.min(used[who]);
                    books.give(&names[who], bytes);
                    used[who] -= bytes;
                }
                prop_assert!(used.iter().sum::<u64>() <= free);
                prop_assert!(used[0] <= 500 && used[1] <= 500);
                prop_assert_eq!(books.free, free - used.iter().sum::<u64>());
            }
        }
    }
}
