//! One module per noun: call control, print the answer.

mod events;
mod explain;
mod farm;
mod grid;
mod node;
mod stock;

use std::path::Path;

use croft_proto::api::{ApplyReply, ApplyTextRequest};
use croft_proto::printable;

use crate::args::{Cli, Command};
use crate::client::Control;
use crate::fault::Fault;
use crate::profile::{Profile, read_text};

/// Does what the command line says.
///
/// # Errors
/// It could not be done.
pub async fn run(cli: Cli) -> Result<(), Fault> {
    let profile = Profile::load(cli.profile)?;
    let output = cli.output;
    if let Command::Events(options) = cli.command {
        return events::run(&profile, options, output).await;
    }
    let control = &mut Control::connect(&profile).await?;
    match cli.command {
        Command::Grid(command) => grid::run(control, command, output).await,
        Command::Node(command) => node::run(control, command, output).await,
        Command::Farm(command) => farm::run(control, command, output).await,
        Command::Blueprint(command) => stock::blueprint(control, command, output).await,
        Command::Image(command) => stock::image(control, command, output).await,
        Command::Events(_) => Ok(()),
        Command::Explain(options) => explain::run(control, options, output).await,
    }
}

/// The request that sends a file.
fn document(path: &Path) -> Result<ApplyTextRequest, Fault> {
    Ok(ApplyTextRequest { text: read_text(path)?, file: path.display().to_string() })
}

/// What an apply changed, one line per change.
fn changes(reply: &ApplyReply) -> String {
    if !reply.changed {
        return "nothing changed\n".to_owned();
    }
    if reply.changes.is_empty() {
        return "changed\n".to_owned();
    }
    reply.changes.iter().map(|change| printable(change, ' ') + "\n").collect()
}
