//! `bootd.toml`: read and checked here, bound to ports elsewhere.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use croft_proto::checked_toml::{self, Faults};

use crate::alone::{self, Plan};

/// Where bootd keeps things, and who says what it serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Directory of durable facts: desired state, boot windows, volumes, events, certificate.
    pub state_dir: PathBuf,
    /// The image store (layout in `croft_proto`, image.rs).
    pub image_dir: PathBuf,
    /// Directory with `undionly.kpxe` and `snponly.efi`.
    pub ipxe_dir: PathBuf,
    /// Where operators may look; nowhere unless it is said.
    pub(crate) status: Option<SocketAddr>,
    /// Who says what is served.
    pub(crate) source: Source,
}

/// Who says what is served.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// Control, through this door.
    Control(EdgeConfig),
    /// The file itself.
    Alone(Box<Plan>),
}

/// Control's door: where it is, and the certificates of its mutual TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EdgeConfig {
    /// Address on the control LAN.
    pub listen: SocketAddr,
    /// Certificate authority of the grid, PEM: who may call.
    pub ca: PathBuf,
    /// Certificate that bootd shows, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}: give the path of a bootd.toml that this user may read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its content is faulty.
    #[error("{path} is faulty and changes nothing:\n{faults}")]
    Faulty {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it.
        faults: Faults,
    },
}

impl Config {
    /// Reads and checks a file; opens no port.
    ///
    /// # Errors
    /// The file cannot be read, or has faults: all of them, with line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|faults| ConfigError::Faulty { path: path.to_owned(), faults })
    }

    /// Checks a document.
    ///
    /// # Errors
    /// Every fault, with line and key.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        checked_toml::read(text, |doc| {
            let state_dir = absolute(doc, "state_dir");
            let image_dir = absolute(doc, "image_dir");
            let ipxe_dir = if doc.has("ipxe_dir") {
                absolute(doc, "ipxe_dir")
            } else {
                Some(PathBuf::from("/usr/lib/ipxe"))
            };
            let status = if doc.has("status") { status(doc) } else { None };
            let alone = ["segment", "blueprint", "rule", "node", "site"];
            let source = if doc.has("edge") || !alone.iter().any(|key| doc.has(key)) {
                for key in alone.iter().filter(|key| doc.has(key)) {
                    doc.fault(
                        key,
                        "says what to serve, and so does the control of [edge]: one must go",
                    );
                }
                edge(doc).map(Source::Control)
            } else {
                alone::read(doc).map(|plan| Source::Alone(Box::new(plan)))
            };
            Some(Self {
                state_dir: state_dir?,
                image_dir: image_dir?,
                ipxe_dir: ipxe_dir?,
                status,
                source: source?,
            })
        })
    }

    /// What a file says in short.
    pub fn summary(&self) -> String {
        match &self.source {
            Source::Control(edge) => format!("under control, which calls at {}", edge.listen),
            Source::Alone(plan) => format!(
                "alone: {} segments, {} blueprints, {} nodes, {} rules",
                plan.links.len(),
                plan.blueprints.len(),
                plan.machines.list.len(),
                plan.rules.list.len()
            ),
        }
    }
}

fn status(doc: &mut checked_toml::Table<'_>) -> Option<SocketAddr> {
    let mut status = doc.table("status")?;
    let listen: Option<SocketAddr> = status.required("listen");
    if listen.is_some_and(|address| address.ip().is_unspecified()) {
        status.fault(
            "listen",
            "must be one address that only operators reach, such as 127.0.0.1:9180",
        );
    }
    listen
}

fn edge(doc: &mut checked_toml::Table<'_>) -> Option<EdgeConfig> {
    let mut edge = doc.table("edge")?;
    let listen: Option<SocketAddr> = edge.required("listen");
    if listen.is_some_and(|address| address.ip().is_unspecified()) {
        edge.fault("listen", "must be one address on the control LAN, not all of them");
    }
    let ca = absolute(&mut edge, "ca");
    let certificate = absolute(&mut edge, "certificate");
    let key = absolute(&mut edge, "key");
    Some(EdgeConfig { listen: listen?, ca: ca?, certificate: certificate?, key: key? })
}

fn absolute(table: &mut checked_toml::Table<'_>, key: &str) -> Option<PathBuf> {
    let path: PathBuf = table.required(key)?;
    if path.is_absolute() {
        return Some(path);
    }
    table.fault(key, "must be an absolute path");
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"
state_dir = "/var/lib/croft/bootd"
image_dir = "/var/lib/croft/images"
[edge]
listen = "10.255.0.2:7443"
ca = "/etc/croft/ca.pem"
certificate = "/etc/croft/edge.pem"
key = "/etc/croft/edge.key"
"#;

    #[test]
    fn a_good_document_reads_and_has_defaults() {
        let config = Config::parse(GOOD).expect("valid");
        assert_eq!(config.ipxe_dir, Path::new("/usr/lib/ipxe"));
        let Source::Control(edge) = config.source else { panic!("not under control") };
        assert_eq!(edge.listen.port(), 7443);
    }

    #[test]
    fn every_fault_has_its_line_and_key() {
        let text = "state_dir = 'relative'\nimage_dir = 3\nports = 1\n[edge]\nlisten = \
                    '0.0.0.0:7443'\nca = '/ca'\nkey = '/key'\nca_file = 'x'\n";
        let faults = Config::parse(text).expect_err("faulty");
        let at: Vec<_> = faults.0.iter().map(|f| (f.line, f.key.as_str())).collect();
        assert_eq!(
            at,
            [
                (1, "state_dir"),
                (2, "image_dir"),
                (3, "ports"),
                (4, "edge.certificate"),
                (5, "edge.listen"),
                (8, "edge.ca_file"),
            ]
        );
    }

    #[test]
    fn the_example_reads() {
        let example = Config::parse(include_str!("../examples/bootd.toml")).expect("good");
        let summary = "alone: 1 segments, 2 blueprints, 0 nodes, 2 rules";
        assert_eq!(example.summary(), summary);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,300}") {
            let _ = Config::parse(&text);
        }
    }
}
