//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Operates a Croft grid: turns a pool of diskless machines into farms that grow and shrink.
#[derive(Debug, Parser)]
#[command(name = "croft", version, propagate_version = true)]
pub struct Cli {
    /// Where control is and the token to show it [default: ~/.config/croft/operator.toml].
    #[arg(long, global = true, env = "CROFT_PROFILE", value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Tables for people, or JSON with the field names of api.proto.
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORM")]
    pub output: Output,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns.
    Table,
    /// One JSON document; for events one per line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The inventory: switches, nodes, VLANs, subnets.
    #[command(subcommand)]
    Grid(Grid),
    /// The machines.
    #[command(subcommand)]
    Node(Node),
    /// Virtual server farms.
    #[command(subcommand)]
    Farm(Farm),
    /// Roles and what they boot.
    #[command(subcommand)]
    Blueprint(Blueprint),
    /// Boot images.
    #[command(subcommand)]
    Image(Image),
    /// What has happened.
    Events(Events),
    /// Why a tier has the size that it has.
    Explain(Explain),
}

/// `croft grid …`
#[derive(Debug, Subcommand)]
pub enum Grid {
    /// Replaces the inventory by this file.
    Apply {
        /// grid.toml.
        file: PathBuf,
    },
    /// Shows the grid.
    Show,
}

/// `croft node …`
#[derive(Debug, Subcommand)]
pub enum Node {
    /// Lists every node.
    Ls,
    /// Shows one node.
    Show {
        /// Its name.
        name: String,
    },
    /// Draws a node's last boots step by step, and says where and why one stopped.
    Boot {
        /// Its name.
        name: String,
    },
    /// Takes a quarantined node back into the idle pool.
    Release {
        /// Its name.
        name: String,
    },
}

/// `croft farm …`
#[derive(Debug, Subcommand)]
pub enum Farm {
    /// Creates or changes the farm of this file.
    Apply {
        /// The farm's TOML file.
        file: PathBuf,
    },
    /// Shows one farm with its tiers and members.
    Show {
        /// Its name.
        name: String,
    },
    /// Lists every farm.
    Ls,
    /// Deletes a farm: its nodes go back to the idle pool.
    Delete {
        /// Its name.
        name: String,
        /// Returns only when the farm is gone.
        #[arg(long)]
        wait: bool,
        /// With --wait: gives up after this many seconds (the deletion goes on).
        #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait")]
        timeout: u64,
    },
}

/// `croft blueprint …`
#[derive(Debug, Subcommand)]
pub enum Blueprint {
    /// Lists every blueprint.
    Ls,
    /// Creates or changes the blueprints of this file.
    Apply {
        /// The TOML file.
        file: PathBuf,
    },
}

/// `croft image …`
#[derive(Debug, Subcommand)]
pub enum Image {
    /// Lists every version of every image.
    Ls,
}

/// `croft events`
#[derive(Debug, Args)]
pub struct Events {
    /// Goes on with new events until interrupted.
    #[arg(short, long)]
    pub follow: bool,
    /// Only events with a higher sequence number.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub after: u64,
}

/// `croft explain`
#[derive(Debug, Args)]
pub struct Explain {
    /// FARM/TIER, for example shop/web.
    #[arg(value_parser = parse_tier)]
    pub tier: TierPath,
    /// Newest decisions to show, 1 to 100.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
}

/// A tier of a farm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierPath {
    /// The farm.
    pub farm: String,
    /// The tier.
    pub tier: String,
}

fn parse_tier(text: &str) -> Result<TierPath, String> {
    match text.split_once('/') {
        Some((farm, tier)) if !farm.is_empty() && !tier.is_empty() && !tier.contains('/') => {
            Ok(TierPath { farm: farm.to_owned(), tier: tier.to_owned() })
        }
        _ => Err("write FARM/TIER, for example shop/web".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_tier_has_a_farm_and_a_name() {
        assert!(parse_tier("shop/web").is_ok());
        for bad in ["shop", "/web", "shop/", "shop/web/1"] {
            assert!(parse_tier(bad).is_err(), "{bad}");
        }
    }
}
