//! Compiles the `.proto` files with the pure-Rust compiler, so that `cargo build` alone works.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let common = protox::compile(["common.proto"], ["proto"])?;
    let mut shared = tonic_prost_build::configure();
    // Those that are shown as JSON, too.
    for message in ["Boot", "BootStage", "BootStep", "BootTransfer"] {
        let path = format!(".croft.common.v1.{message}");
        shared = shared.type_attribute(path, "#[derive(serde::Serialize)]");
    }
    shared.compile_fds(common)?;
    let services = protox::compile(["edge.proto", "agent.proto", "api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .extern_path(".croft.common.v1", "crate::common")
        .type_attribute(".croft.api.v1", "#[derive(serde::Serialize)]")
        // Written by hand: these carry secrets.
        .skip_debug(["croft.agent.v1.Hello", "croft.agent.v1.Welcome"])
        .compile_fds(services)?;
    Ok(())
}
