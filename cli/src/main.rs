//! `croft`: the operators' command line. Each command is one call to control; what it prints is a
//! table or JSON, and what fails is one clear line and an exit status.

#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod fault;
mod print;
mod profile;
mod table;
mod text;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;

use fault::Fault;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match commands::run(args::Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough: `croft events | head`.
        Err(Fault::Write(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(fault) => {
            for line in fault.to_string().lines() {
                match fault {
                    // FILE:LINE comes first, so that editors can follow it.
                    Fault::Input { .. } | Fault::Profile { .. } => eprintln!("{line}"),
                    _ => eprintln!("croft: {line}"),
                }
            }
            fault.exit_code()
        }
    }
}
