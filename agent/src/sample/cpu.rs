//! The share of all CPUs that was busy, from `/proc/stat`.

use super::counter::advance;

/// Ticks of all CPUs since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CpuTicks {
    busy: [u64; 6],
    idle: [u64; 2],
}

impl CpuTicks {
    /// The first line of `/proc/stat`:
    /// `cpu user nice system idle iowait irq softirq steal guest guest_nice`.
    /// The last two are contained in the first two. Stolen time counts as busy: the CPU wanted to
    /// run and could not, so the node has no more to give.
    pub fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find(|line| line.starts_with("cpu "))?;
        let mut fields = line.split_ascii_whitespace().skip(1).map(|f| f.parse::<u64>().ok());
        let mut next = || fields.next().flatten();
        let [user, nice, system, idle] = [next()?, next()?, next()?, next()?];
        // Older kernels have fewer columns.
        let [iowait, irq, softirq, steal] =
            [next(), next(), next(), next()].map(Option::unwrap_or_default);
        Some(Self { busy: [user, nice, system, irq, softirq, steal], idle: [idle, iowait] })
    }

    /// The busy share since an earlier reading, 0..=1; 0 if no tick has passed.
    pub fn busy_since(&self, old: &Self) -> f64 {
        // Column by column: idle and iowait are known to step back a little now and then.
        let sum = |new: &[u64], old: &[u64]| -> u128 {
            new.iter().zip(old).map(|(new, old)| u128::from(advance(*old, *new))).sum()
        };
        let busy = sum(&self.busy, &old.busy);
        let all = busy + sum(&self.idle, &old.idle);
        if all == 0 { 0.0 } else { (busy as f64 / all as f64).clamp(0.0, 1.0) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_share_is_that_of_the_interval_alone() {
        let old = CpuTicks::parse("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3 4\n").expect("valid");
        let new = CpuTicks::parse("cpu  130 0 110 830 20 5 5 0 30 0\n").expect("valid");
        assert!((new.busy_since(&old) - 0.5).abs() < 1e-9);
        assert_eq!(new.busy_since(&new), 0.0);
    }

    #[test]
    fn a_column_that_steps_back_counts_nothing() {
        let old = CpuTicks::parse("cpu 10 0 0 100 9 0 0 0").expect("valid");
        let new = CpuTicks::parse("cpu 20 0 0 110 7 0 0 0").expect("valid");
        assert!((new.busy_since(&old) - 0.5).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(a in any::<String>(), b in "cpu [0-9 ]{0,120}") {
            let _ = CpuTicks::parse(&a);
            if let Some(ticks) = CpuTicks::parse(&b) {
                let share = ticks.busy_since(&CpuTicks::default());
                prop_assert!((0.0..=1.0).contains(&share));
            }
        }
    }
}
