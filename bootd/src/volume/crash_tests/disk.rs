//! A disk that forgets: what was not synced is lost, or half of it is, when power is.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::volume::backing::{Backing, Disk};

pub const SECTOR: u64 = 512;

/// A small generator with a seed: what a failing seed did, it does again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

type Sector = [u8; 512];

#[derive(Debug, Default)]
struct Inode {
    /// Sectors as the running processes see them; missing ones are zero.
    now: HashMap<u64, Sector>,
    /// Sectors as they are on disk.
    synced: HashMap<u64, Sector>,
    /// Sectors written since, in order.
    pending: Vec<(u64, Sector)>,
    length: u64,
    synced_length: u64,
}

#[derive(Debug, Default)]
struct World {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Changes of names that are not synced: the name, and what it is now.
    pending: Vec<(String, Option<usize>)>,
    /// Writes and syncs that still succeed; `None` for all.
    budget: Option<u64>,
    /// Syncs fail, and the kernel forgets what was dirty.
    sick: bool,
    /// Sectors that were never written cannot be.
    full: bool,
}

impl World {
    fn spend(&mut self) -> io::Result<()> {
        match &mut self.budget {
            Some(0) => Err(io::Error::other("the process is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

thread_local! {
    /// What happens while a sync runs. It is of this thread, and may write to the disk.
    static MEANWHILE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Runs `step`; during each sync in it `other` is called.
pub fn during_syncs<T>(other: impl FnMut() + 'static, step: impl FnOnce() -> T) -> T {
    MEANWHILE.with(|slot| *slot.borrow_mut() = Some(Box::new(other)));
    let result = step();
    MEANWHILE.with(|slot| *slot.borrow_mut() = None);
    result
}

#[derive(Debug, Clone, Default)]
pub struct ForgetfulDisk(Arc<Mutex<World>>);

#[derive(Debug)]
pub struct ForgetfulFile {
    disk: ForgetfulDisk,
    inode: usize,
}

impl ForgetfulDisk {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("not poisoned")
    }

    /// From now on, so many writes and syncs succeed, and then the process is gone.
    pub fn live_for(&self, steps: u64) {
        self.world().budget = Some(steps);
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.world().names.contains_key(name)
    }

    /// Whether the process is gone.
    pub fn is_gone(&self) -> bool {
        self.world().budget == Some(0)
    }

    /// Whether syncs fail.
    pub fn is_sick(&self) -> bool {
        self.world().sick
    }

    /// Lets syncs fail, or not any more.
    pub fn make_sick(&self, sick: bool) {
        self.world().sick = sick;
    }

    /// Lets the room be used up, or not any more.
    pub fn make_full(&self, full: bool) {
        self.world().full = full;
    }

    /// Power is lost: of what was not synced, any sectors, lengths and names may be there.
    pub fn lose_power(&self, random: &mut Random) {
        let mut world = self.world();
        let keep = random.below(5);
        for inode in &mut world.inodes {
            for (sector, bytes) in std::mem::take(&mut inode.pending) {
                if random.below(4) < keep {
                    inode.synced.insert(sector, bytes);
                }
            }
            if random.below(4) < keep {
                inode.synced_length = inode.length;
            }
            inode.length = inode.synced_length;
            let end = inode.length / SECTOR;
            inode.synced.retain(|sector, _| *sector < end);
            inode.now = inode.synced.clone();
        }
        for (name, inode) in std::mem::take(&mut world.pending) {
            if random.below(4) < keep {
                set(&mut world.synced_names, name, inode);
            }
        }
        world.names = world.synced_names.clone();
        (world.budget, world.sick, world.full) = (None, false, false);
    }

    /// The process is gone; the kernel still has all it wrote.
    pub fn kill(&self) {
        let mut world = self.world();
        (world.budget, world.sick, world.full) = (None, false, false);
    }

    /// Turns one bit of a file's sector that is not empty, on disk and in the cache; `false` if all
    /// are empty.
    pub fn rot(&self, name: &str, random: &mut Random) -> bool {
        let mut world = self.world();
        let Some(inode) = world.names.get(name).copied() else { return false };
        let inode = &mut world.inodes[inode];
        let used = inode.now.iter().filter(|(_, bytes)| **bytes != [0; 512]);
        let mut sectors: Vec<u64> = used.map(|(sector, _)| *sector).collect();
        sectors.sort_unstable();
        if sectors.is_empty() {
            return false;
        }
        let sector = sectors[random.below(sectors.len() as u64) as usize];
        let (byte, bit) = (random.below(512) as usize, random.below(8));
        let mut bytes = inode.now[&sector];
        bytes[byte] ^= 1 << bit;
        inode.now.insert(sector, bytes);
        inode.synced.insert(sector, bytes);
        true
    }

    fn file(&self, inode: usize) -> ForgetfulFile {
        ForgetfulFile { disk: self.clone(), inode }
    }
}

fn set(names: &mut BTreeMap<String, usize>, name: String, inode: Option<usize>) {
    match inode {
        Some(inode) => names.insert(name, inode),
        None => names.remove(&name),
    };
}

impl Disk for ForgetfulDisk {
    type File = ForgetfulFile;

    fn open(&self, name: &str) -> io::Result<ForgetfulFile> {
        let inode = self.world().names.get(name).copied();
        inode.map(|inode| self.file(inode)).ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&self, name: &str) -> io::Result<ForgetfulFile> {
        let mut world = self.world();
        world.spend()?;
        world.inodes.push(Inode::default());
        let inode = world.inodes.len() - 1;
        world.names.insert(name.to_owned(), inode);
        world.pending.push((name.to_owned(), Some(inode)));
        Ok(self.file(inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.spend()?;
        world.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        world.pending.push((name.to_owned(), None));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.world();
        world.spend()?;
        let inode = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_owned(), inode);
        world.pending.push((to.to_owned(), Some(inode)));
        world.pending.push((from.to_owned(), None));
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.world().names.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world();
        world.spend()?;
        for (name, inode) in std::mem::take(&mut world.pending) {
            set(&mut world.synced_names, name, inode);
        }
        Ok(())
    }

    fn free(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

impl Backing for ForgetfulFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let world = self.disk.world();
        let inode = &world.inodes[self.inode];
        if offset + buffer.len() as u64 > inode.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = 0;
        while at < buffer.len() {
            let place = offset + at as u64;
            let (sector, skew) = (place / SECTOR, (place % SECTOR) as usize);
            let length = (512 - skew).min(buffer.len() - at);
            match inode.now.get(&sector) {
                Some(bytes) => {
                    buffer[at..at + length].copy_from_slice(&bytes[skew..skew + length]);
                }
                None => buffer[at..at + length].fill(0),
            }
            at += length;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut world = self.disk.world();
        world.spend()?;
        let full = world.full;
        let inode = &mut world.inodes[self.inode];
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let (sector, skew) = (place / SECTOR, (place % SECTOR) as usize);
            let length = (512 - skew).min(data.len() - at);
            let old = inode.now.get(&sector).copied();
            if full && old.is_none() {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut bytes = old.unwrap_or([0; 512]);
            bytes[skew..skew + length].copy_from_slice(&data[at..at + length]);
            inode.now.insert(sector, bytes);
            inode.pending.push((sector, bytes));
            at += length;
        }
        inode.length = inode.length.max(offset + data.len() as u64);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.spend()?;
        let inode = &mut world.inodes[self.inode];
        for sector in offset / SECTOR..(offset + length) / SECTOR {
            inode.now.remove(&sector);
            inode.pending.push((sector, [0; 512]));
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.world().inodes[self.inode].length)
    }

    fn extend(&self, length: u64) -> io::Result<()> {
        let mut world = self.disk.world();
        world.spend()?;
        let inode = &mut world.inodes[self.inode];
        inode.length = inode.length.max(length);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let covered = {
            let mut world = self.disk.world();
            world.spend()?;
            let sick = world.sick;
            let inode = &mut world.inodes[self.inode];
            if sick {
                inode.pending.clear();
                return Err(io::Error::other("the disk is sick"));
            }
            inode.pending.len()
        };
        // What is written from here on may not be covered.
        let other = MEANWHILE.with(|slot| slot.borrow_mut().take());
        if let Some(mut other) = other {
            other();
            MEANWHILE.with(|slot| *slot.borrow_mut() = Some(other));
        }
        let mut world = self.disk.world();
        if world.budget == Some(0) {
            // The process went while the sync ran: it is known to nobody that it succeeded.
            return Err(io::Error::other("the process is gone"));
        }
        let inode = &mut world.inodes[self.inode];
        for (sector, bytes) in inode.pending.drain(..covered) {
            inode.synced.insert(sector, bytes);
        }
        inode.synced_length = inode.length;
        Ok(())
    }

    fn forget(&self) -> io::Result<()> {
        let mut world = self.disk.world();
        let inode = &mut world.inodes[self.inode];
        inode.now = inode.synced.clone();
        for (sector, bytes) in &inode.pending {
            inode.now.insert(*sector, *bytes);
        }
        Ok(())
    }
}
