//! Scenarios that drive a whole Croft in a virtual rack, as an operator and a visitor would:
//! `croft-rack enter --dir DIR -- croft-e2e demo`.

mod api;
mod bench_boot;
mod client;
mod demo;
mod isolation;
mod methods;
mod peers;
mod power;
mod process;
mod recovery;
mod run;
mod san;
mod secrets;
mod site;
mod timeline;
mod wait;

use clap::Parser;

/// End-to-end scenarios; each runs inside `croft-rack enter`.
#[derive(Debug, Parser)]
enum Scenario {
    /// Starts Croft, applies the example shop and shows the rack until Ctrl-C.
    Run,
    /// Boots, loads, grows, shrinks, isolates and replaces; exit status 0 only if all was seen.
    Demo,
    /// Kills bootd while guests write to their disks; they pause, go on and lose nothing.
    KillBootd,
    /// Kills control in the middle of a grow and of a shrink, before a balancer whose root is in
    /// memory; both end as if it had not been.
    KillControl,
    /// Guests reserve, unmap and grow data volumes.
    San,
    /// Boots a node by each boot method, from one file and without control.
    Methods,
    /// Boot times beside dnsmasq, tgt and nginx.
    BenchBoot(bench_boot::Options),
    /// Asks a URL at a fixed rate, whatever the answers do, and reports once a second.
    Client(client::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match Scenario::parse() {
        Scenario::Run => run::run().await,
        Scenario::Demo => demo::demo().await,
        Scenario::KillBootd => recovery::kill_bootd().await,
        Scenario::KillControl => recovery::kill_control().await,
        Scenario::San => san::san().await,
        Scenario::Methods => methods::methods().await,
        Scenario::BenchBoot(options) => bench_boot::bench(options).await,
        Scenario::Client(options) => client::client(options).await,
    }
}
