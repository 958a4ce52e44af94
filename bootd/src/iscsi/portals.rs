//! The portals: addresses at which the one portal group is served, by segment.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use croft_proto::SegmentName;

/// Which addresses are served now.
#[derive(Debug, Default)]
pub(crate) struct Portals(Mutex<Vec<(SegmentName, SocketAddr)>>);

impl Portals {
    fn lock(&self) -> MutexGuard<'_, Vec<(SegmentName, SocketAddr)>> {
        // Entries are put and taken whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A portal opens. One that listens at every address names none.
    pub fn open(&self, segment: &SegmentName, address: SocketAddr) {
        if !address.ip().is_unspecified() {
            self.lock().push((segment.clone(), address));
        }
    }

    /// It closes.
    pub fn close(&self, segment: &SegmentName, address: SocketAddr) {
        let mut portals = self.lock();
        let at = portals.iter().position(|(s, a)| s == segment && *a == address);
        at.map(|at| portals.swap_remove(at));
    }

    /// The portals of a segment, the one that was asked first.
    pub fn list(&self, segment: &SegmentName, asked: SocketAddr) -> Vec<SocketAddr> {
        let portals = self.lock();
        let others = portals.iter().filter(|(s, a)| s == segment && *a != asked);
        std::iter::once(asked).chain(others.map(|(_, address)| *address)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_shows_its_own_portals() {
        let portals = Portals::default();
        let (one, two): (SegmentName, SegmentName) =
            ("seg100".parse().expect("valid"), "seg101".parse().expect("valid"));
        let address = |n: u8| SocketAddr::from(([10, 20, 0, n], 3260));
        portals.open(&one, address(1));
        portals.open(&one, address(2));
        portals.open(&two, address(3));
        portals.open(&one, SocketAddr::from(([0, 0, 0, 0], 3260)));
        assert_eq!(portals.list(&one, address(2)), [address(2), address(1)]);
        portals.close(&one, address(1));
        assert_eq!(portals.list(&one, address(2)), [address(2)]);
        assert_eq!(portals.list(&two, address(9)), [address(9), address(3)]);
    }
}
