//! Disks, from `/proc/diskstats` (Linux, Documentation/admin-guide/iostats.rst).

use std::time::Duration;

use croft_proto::common::DiskLoad;

use super::counter::{advance, per_second};

/// `/proc/diskstats` counts in these, whatever the disk's own block size.
const SECTOR_BYTES: u64 = 512;

/// Counters of one disk since it appeared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskCounters {
    pub name: String,
    sectors_read: u64,
    sectors_written: u64,
    /// Milliseconds with at least one request under way; the kernel counts in 32 bits.
    busy_ms: u64,
}

/// Whole disks; lines that are not understood are left out.
pub(crate) fn parse(diskstats: &str) -> Vec<DiskCounters> {
    diskstats.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<DiskCounters> {
    let mut fields = line.split_ascii_whitespace().skip(2);
    let name = fields.next().filter(|name| is_whole_disk(name))?;
    // reads, merged, sectors, ms, writes, merged, sectors, ms, in flight, ms busy
    let mut numbers = [0; 10];
    for number in &mut numbers {
        *number = fields.next()?.parse().ok()?;
    }
    Some(DiskCounters {
        name: name.to_owned(),
        sectors_read: numbers[2],
        sectors_written: numbers[6],
        busy_ms: numbers[9],
    })
}

/// Partitions repeat what their disk counts, and loop, RAM, mapped and optical devices are no load
/// of their own.
fn is_whole_disk(name: &str) -> bool {
    let without_digits = name.trim_end_matches(|c: char| c.is_ascii_digit());
    if name.len() > 32 {
        false
    } else if name.starts_with("nvme") || name.starts_with("mmcblk") {
        // nvme0n1 is a disk, nvme0n1p2 and mmcblk0p1 are partitions.
        !without_digits.ends_with('p')
    } else {
        ["sd", "vd", "xvd", "hd"].iter().any(|prefix| {
            name.strip_prefix(prefix).is_some_and(|rest| {
                !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase())
            })
        })
    }
}

impl DiskCounters {
    /// Rates since an earlier reading of the same disk.
    pub fn load_since(&self, old: &Self, interval: Duration) -> DiskLoad {
        let rate = |old, new| per_second(advance(old, new).saturating_mul(SECTOR_BYTES), interval);
        let interval_ms = interval.as_secs_f64() * 1000.0;
        let busy = advance(old.busy_ms, self.busy_ms) as f64;
        DiskLoad {
            name: self.name.clone(),
            read_bytes_per_s: rate(old.sectors_read, self.sectors_read),
            write_bytes_per_s: rate(old.sectors_written, self.sectors_written),
            busy: if interval_ms > 0.0 { (busy / interval_ms).clamp(0.0, 1.0) } else { 0.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\
   7       0 loop0 9 0 9 9 0 0 0 0 0 9 9
   8       0 sda 100 0 2000 50 200 0 4000 80 0 4294967200 130 0 0 0 0 0 0
   8       1 sda1 100 0 2000 50 200 0 4000 80 0 600 130
 259       0 nvme0n1 1 0 8 1 1 0 8 1 0 2 2
 259       1 nvme0n1p1 1 0 8 1 1 0 8 1 0 2 2
 253       0 dm-0 1 0 8 1 1 0 8 1 0 2 2
   8      16 sdb short line
";

    #[test]
    fn whole_disks_only_and_their_rates() {
        let disks = parse(TEXT);
        assert_eq!(disks.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["sda", "nvme0n1"]);
        let later = parse("8 0 sda 1 0 4000 1 1 0 8000 1 0 404 1");
        let load = later[0].load_since(&disks[0], Duration::from_secs(2));
        assert_eq!((load.read_bytes_per_s, load.write_bytes_per_s), (512_000, 1_024_000));
        assert!((load.busy - 0.25).abs() < 1e-9, "the busy time wraps at 32 bits: {}", load.busy);
        let now = later[0].load_since(&disks[0], Duration::ZERO);
        assert_eq!((now.read_bytes_per_s, now.busy), (0, 0.0));
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(
            a in any::<String>(),
            b in "( {1,3}[0-9]{1,3} [0-9] (sda|vdb|nvme0n1|mmcblk0p1)( [0-9]{1,20}){0,12}\n){0,4}",
        ) {
            let _ = parse(&a);
            for disk in parse(&b) {
                let zero = DiskCounters { name: String::new(), sectors_read: 0, sectors_written: 0, busy_ms: 0 };
                let load = disk.load_since(&zero, Duration::from_millis(1));
                prop_assert!((0.0..=1.0).contains(&load.busy));
            }
        }
    }
}
