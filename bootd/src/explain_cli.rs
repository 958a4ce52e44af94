//! `croft-bootd explain`: what a machine would get from a file, and which line says so.

use std::path::PathBuf;

use clap::Args;
use croft_proto::{InvalidCircuitId, MacAddr, SegmentName};
use uuid::Uuid;

use crate::alone::{Family, Question, explain};
use crate::config::{Config, ConfigError, Source};

/// The machine, as it would ask.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
    /// MAC address of the boot NIC.
    #[arg(long)]
    mac: MacAddr,
    /// SMBIOS UUID.
    #[arg(long)]
    uuid: Option<Uuid>,
    /// bios, uefi, uefi-arm64…, or a number of option 93.
    #[arg(long)]
    arch: Option<String>,
    /// Segment, or subnet behind a relay, on which it asks; may be left out if there is one.
    #[arg(long)]
    segment: Option<SegmentName>,
    /// Circuit-id that a relay puts into option 82: text, or 0x and hex digits.
    #[arg(long)]
    circuit_id: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file is for a bootd under control.
    #[error("{0} is for a bootd under control, which decides there what machines become")]
    Controlled(PathBuf),
    /// The question makes no sense.
    #[error("{0}")]
    Question(String),
}

/// Answers in lines of text.
///
/// # Errors
/// The file or the question is faulty.
pub fn run(args: &ExplainArgs) -> Result<String, ExplainError> {
    let config = Config::load(&args.config)?;
    let Source::Alone(plan) = config.source else {
        return Err(ExplainError::Controlled(args.config.clone()));
    };
    let question = Question {
        mac: args.mac,
        uuid: args.uuid,
        arch: part("--arch", args.arch.as_deref(), Family::number)?,
        segment: args.segment.clone(),
        circuit: part("--circuit-id", args.circuit_id.as_deref(), |text| {
            text.parse().map_err(|error: InvalidCircuitId| error.to_string())
        })?,
    };
    explain(&plan, &question).map_err(|error| ExplainError::Question(error.to_string()))
}

/// A part of the question, if it was given.
fn part<T>(
    name: &str,
    text: Option<&str>,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, ExplainError> {
    let fault = |error| ExplainError::Question(format!("{name}: {error}"));
    text.map(read).transpose().map_err(fault)
}
