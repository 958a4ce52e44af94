//! The node's load: rates since the last poll.
//!
//! sysinfo gives memory and network counters, created once and refreshed only in what is sent
//! (it reads every process otherwise). The CPU share over exactly one poll interval and the busy
//! time of disks it does not give: those come from `/proc` through pure parsers.

mod counter;
mod cpu;
mod disk;

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use croft_proto::common::{Load, NicLoad};
use sysinfo::{MemoryRefreshKind, Networks, System};

use counter::{advance, per_second};
use cpu::CpuTicks;
use disk::DiskCounters;

/// More disks or NICs than this are not reported: the message stays small whatever is plugged in.
const MAX_DEVICES: usize = 64;

/// Why the sampler cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// sysinfo found no system it knows.
    #[error("cannot read memory and network counters: is /proc mounted?")]
    System(#[source] sysinfo::Error),
    /// A file of `/proc` is unreadable.
    #[error("cannot read {path}: is /proc mounted?")]
    Proc {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of `/proc` is not in the known form.
    #[error("{0} is not in the form that Linux documents")]
    Form(&'static str),
}

/// Takes samples; holds the counters of the previous one.
#[derive(Debug)]
pub(crate) struct Sampler {
    system: System,
    networks: Networks,
    taken: Instant,
    cpu: CpuTicks,
    disks: Vec<DiskCounters>,
    nics: HashMap<String, (u64, u64)>,
}

impl Sampler {
    /// Reads the first counters: the first sample covers the time since this call.
    pub fn new() -> Result<Self, SampleError> {
        let mut sampler = Self {
            system: System::new().map_err(SampleError::System)?,
            networks: Networks::new().map_err(SampleError::System)?,
            taken: Instant::now(),
            cpu: CpuTicks::default(),
            disks: Vec::new(),
            nics: HashMap::new(),
        };
        sampler.take()?;
        Ok(sampler)
    }

    /// The load since the previous call.
    pub fn take(&mut self) -> Result<Load, SampleError> {
        let now = Instant::now();
        let interval = now.duration_since(self.taken);
        let cpu = CpuTicks::parse(&read("/proc/stat")?).ok_or(SampleError::Form("/proc/stat"))?;
        let disks = disk::parse(&read("/proc/diskstats")?);
        self.system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        self.networks.refresh(true);
        let load = Load {
            cpu: cpu.busy_since(&self.cpu),
            memory_total_bytes: self.system.total_memory(),
            memory_used_bytes: self.system.used_memory(),
            nics: self.nic_loads(interval),
            disks: disks
                .iter()
                .filter_map(|disk| {
                    let old = self.disks.iter().find(|old| old.name == disk.name)?;
                    Some(disk.load_since(old, interval))
                })
                .take(MAX_DEVICES)
                .collect(),
            uptime_ms: uptime_ms(&read("/proc/uptime")?)
                .ok_or(SampleError::Form("/proc/uptime"))?,
            interval_ms: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX),
        };
        self.taken = now;
        self.cpu = cpu;
        self.disks = disks;
        Ok(load)
    }

    /// Rates of every NIC but the loopback; a NIC that has just appeared has none yet.
    fn nic_loads(&mut self, interval: Duration) -> Vec<NicLoad> {
        let mut counters = HashMap::new();
        let mut loads = Vec::new();
        for (name, nic) in &self.networks {
            let name = name.to_string_lossy().into_owned();
            if name == "lo" || counters.len() == MAX_DEVICES {
                continue;
            }
            let (rx, tx) = (nic.total_received(), nic.total_transmitted());
            if let Some((old_rx, old_tx)) = self.nics.get(&name) {
                loads.push(NicLoad {
                    name: name.clone(),
                    rx_bytes_per_s: per_second(advance(*old_rx, rx), interval),
                    tx_bytes_per_s: per_second(advance(*old_tx, tx), interval),
                });
            }
            counters.insert(name, (rx, tx));
        }
        self.nics = counters;
        loads.sort_by(|a, b| a.name.cmp(&b.name));
        loads
    }
}

fn read(path: &'static str) -> Result<String, SampleError> {
    std::fs::read_to_string(path).map_err(|source| SampleError::Proc { path, source })
}

/// `/proc/uptime` is `SECONDS.HUNDREDTHS IDLE`.
fn uptime_ms(text: &str) -> Option<u64> {
    let seconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then_some((seconds * 1000.0) as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sample_of_this_machine_is_within_its_ranges() {
        let mut sampler = Sampler::new().expect("a Linux machine");
        let start = Instant::now();
        // Some CPU time must pass: the counters tick 100 times a second.
        while start.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        let load = sampler.take().expect("a sample");
        assert!(load.cpu > 0.0 && load.cpu <= 1.0, "{load:?}");
        assert!(load.interval_ms >= 60, "{load:?}");
        assert!(load.memory_used_bytes > 0 && load.memory_used_bytes <= load.memory_total_bytes);
        assert!(load.uptime_ms > 0);
        assert!(load.nics.iter().all(|nic| nic.name != "lo"));
    }

    proptest! {
        #[test]
        fn no_uptime_text_breaks_it(text in any::<String>()) {
            let _ = uptime_ms(&text);
        }
    }

    #[test]
    fn uptime_is_in_milliseconds() {
        assert_eq!(uptime_ms("12.34 20.00\n"), Some(12_340));
        assert_eq!(uptime_ms("-1 2"), None);
        assert_eq!(uptime_ms("NaN"), None);
    }
}
