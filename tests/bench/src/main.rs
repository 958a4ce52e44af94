//! Croft's servers beside their peers, on one machine, in alternating pairs. The library's first
//! page says what is shared; each module here is one benchmark.

#![forbid(unsafe_code)]

mod dhcp;
mod fabric;
mod iscsi;
mod tftp;

use clap::Parser;

/// Benchmarks of bootd. Each figure is one line `BENCH name=…`, after a `#` line with its spread.
#[derive(Debug, Parser)]
enum Bench {
    /// The iSCSI target beside tgt, qemu-img, iperf3.
    Iscsi(iscsi::Options),
    /// DHCP beside Kea.
    Dhcp(dhcp::Options),
    /// TFTP beside dnsmasq.
    Tftp(tftp::Options),
}

fn main() -> anyhow::Result<()> {
    match Bench::parse() {
        Bench::Iscsi(options) => iscsi::bench(&options),
        Bench::Dhcp(options) => dhcp::bench(&options),
        Bench::Tftp(options) => tftp::bench(&options),
    }
}
