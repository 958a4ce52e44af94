//! What nodes did lately: bounded windows of samples, each a share of the hardware's capacity.

use std::collections::{HashMap, VecDeque};

use croft_proto::{NodeName, common};

use crate::model::Class;

/// Samples kept per node; the oldest go first. Ten minutes at one a second.
const MAX_SAMPLES: usize = 600;

/// Loads as shares of the hardware class's capacity, 0..=1 each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Shares {
    /// Of all CPUs.
    pub cpu: f64,
    /// Of the busiest NIC's busier direction.
    pub network: f64,
    /// Of what the disks can move.
    pub disk: f64,
}

/// What was measured over one interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When the interval began, milliseconds by control's clock.
    pub from_ms: u64,
    /// When it ended.
    pub to_ms: u64,
    /// The load over it.
    pub shares: Shares,
}

/// A load as shares of a class's capacity. Nothing that an agent says gets out of 0..=1.
pub fn shares(load: &common::Load, class: &Class) -> Shares {
    let share = |value: f64| if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 };
    let mbps = |bytes_per_s: u64| bytes_per_s as f64 * 8.0 / 1e6;
    let busiest = load.nics.iter().map(|nic| nic.rx_bytes_per_s.max(nic.tx_bytes_per_s)).max();
    let moved = load.disks.iter().fold(0u64, |sum, disk| {
        sum.saturating_add(disk.read_bytes_per_s).saturating_add(disk.write_bytes_per_s)
    });
    Shares {
        cpu: share(load.cpu),
        network: share(mbps(busiest.unwrap_or(0)) / class.network_mbps.max(1) as f64),
        disk: share(mbps(moved) / class.disk_mbps.max(1) as f64),
    }
}

/// Samples of every node, of its newest boot window only.
#[derive(Debug, Default)]
pub struct Windows {
    nodes: HashMap<NodeName, (u64, VecDeque<Sample>)>,
}

impl Windows {
    /// Adds a sample of a boot window. Samples of an older window are dropped, a newer window
    /// starts anew.
    pub fn record(&mut self, node: &NodeName, window: u64, sample: Sample) {
        let entry = self.nodes.entry(node.clone()).or_insert((window, VecDeque::new()));
        if entry.0 > window {
            return;
        }
        if entry.0 < window {
            *entry = (window, VecDeque::new());
        }
        entry.1.push_back(sample);
        while entry.1.len() > MAX_SAMPLES {
            entry.1.pop_front();
        }
    }

    /// The mean of a boot window's samples that began at or after `from_ms`, and their number.
    pub fn mean(&self, node: &NodeName, window: u64, from_ms: u64) -> Option<(Shares, u32)> {
        let samples = self.nodes.get(node).filter(|(w, _)| *w == window)?;
        let mut sum = Shares::default();
        let mut count = 0u32;
        for sample in samples.1.iter().rev().take_while(|s| s.from_ms >= from_ms) {
            sum.cpu += sample.shares.cpu;
            sum.network += sample.shares.network;
            sum.disk += sample.shares.disk;
            count += 1;
        }
        let mean = |total: f64| total / f64::from(count);
        (count > 0).then(|| {
            let shares =
                Shares { cpu: mean(sum.cpu), network: mean(sum.network), disk: mean(sum.disk) };
            (shares, count)
        })
    }

    /// The newest sample, if it ended at or after `from_ms`.
    pub fn newest(&self, node: &NodeName, from_ms: u64) -> Option<Shares> {
        let newest = self.nodes.get(node)?.1.back()?;
        (newest.to_ms >= from_ms).then_some(newest.shares)
    }

    /// Forgets the nodes that are not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&NodeName) -> bool) {
        self.nodes.retain(|node, _| keep(node));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLASS: Class = Class { cpus: 1, memory_mib: 384, network_mbps: 100, disk_mbps: 400 };

    fn sample(to_ms: u64, cpu: f64) -> Sample {
        let shares = Shares { cpu, ..Shares::default() };
        Sample { from_ms: to_ms.saturating_sub(1000), to_ms, shares }
    }

    #[test]
    fn only_the_newest_boot_and_the_wanted_time_count() {
        let node: NodeName = "n1".parse().expect("valid");
        let mut windows = Windows::default();
        windows.record(&node, 1, sample(1000, 1.0));
        windows.record(&node, 2, sample(2000, 0.9));
        windows.record(&node, 2, sample(3000, 0.2));
        windows.record(&node, 2, sample(4000, 0.4));
        windows.record(&node, 1, sample(5000, 1.0));
        assert_eq!(windows.mean(&node, 1, 0), None);
        let (mean, count) = windows.mean(&node, 2, 2000).expect("samples");
        assert_eq!(count, 2);
        assert!((mean.cpu - 0.3).abs() < 1e-9);
        assert_eq!(windows.mean(&node, 2, 4000), None);
        assert!(windows.newest(&node, 4000).is_some() && windows.newest(&node, 4001).is_none());
    }

    #[test]
    fn windows_are_bounded() {
        let node: NodeName = "n1".parse().expect("valid");
        let mut windows = Windows::default();
        for at in 0..2000 {
            windows.record(&node, 1, sample(at * 1000 + 1000, 0.5));
        }
        assert_eq!(windows.mean(&node, 1, 0).map(|(_, n)| n), Some(MAX_SAMPLES as u32));
    }

    #[test]
    fn rates_become_shares_of_the_class() {
        let load = common::Load {
            cpu: 0.25,
            nics: vec![common::NicLoad {
                name: "eth0".to_owned(),
                rx_bytes_per_s: 1_250_000,
                tx_bytes_per_s: 6_250_000,
            }],
            disks: vec![common::DiskLoad {
                name: "sda".to_owned(),
                read_bytes_per_s: 5_000_000,
                write_bytes_per_s: 5_000_000,
                busy: 1.0,
            }],
            ..common::Load::default()
        };
        assert_eq!(shares(&load, &CLASS), Shares { cpu: 0.25, network: 0.5, disk: 0.2 });
    }

    proptest! {
        #[test]
        fn no_agent_can_report_more_than_all(cpu in any::<f64>(), bytes in any::<u64>()) {
            let disk = common::DiskLoad {
                name: String::new(), read_bytes_per_s: bytes, write_bytes_per_s: bytes, busy: cpu,
            };
            let nic = common::NicLoad {
                name: String::new(), rx_bytes_per_s: bytes, tx_bytes_per_s: 0,
            };
            let load = common::Load {
                cpu, nics: vec![nic], disks: vec![disk.clone(), disk], ..common::Load::default()
            };
            let got = shares(&load, &CLASS);
            for share in [got.cpu, got.network, got.disk] {
                prop_assert!((0.0..=1.0).contains(&share));
            }
        }
    }
}
