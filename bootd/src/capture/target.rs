//! Whose packets, and on which devices: what the configuration file says, and the desired state that
//! the bootd of that file has last kept. Nothing is locked or changed: it may be running.

use std::collections::BTreeSet;
use std::path::PathBuf;

use croft_proto::{MacAddr, NodeName, edge};

use super::{CaptureArgs, CaptureError, bpf};
use crate::config::{Config, Source};
use crate::desired::{DeviceName, kept};

/// Where to look for a machine and its segments.
#[derive(Debug)]
pub(super) struct Book {
    state_dir: Option<PathBuf>,
    source: Option<Source>,
    devices: BTreeSet<DeviceName>,
}

impl Book {
    /// Reads the configuration file, if one is named.
    ///
    /// # Errors
    /// It cannot be used, or a device's name can be none.
    pub(super) fn open(args: &CaptureArgs) -> Result<Self, CaptureError> {
        let device =
            |name: &String| DeviceName::new(name).ok_or_else(|| CaptureError::Name(name.clone()));
        let devices = args.devices.iter().map(device).collect::<Result<_, _>>()?;
        let config = args.config.as_deref().map(Config::load).transpose()?;
        let (state_dir, source) = config.map(|config| (config.state_dir, config.source)).unzip();
        Ok(Self { state_dir, source, devices })
    }

    fn kept(&self) -> Result<edge::DesiredState, CaptureError> {
        let Some(dir) = &self.state_dir else { return Ok(edge::DesiredState::default()) };
        kept(dir).map_err(|source| CaptureError::Kept { source: Box::new(source) })
    }

    /// The MAC addresses of a node, the boot NIC first.
    ///
    /// # Errors
    /// Nobody knows it.
    pub(super) fn macs(&self, node: &NodeName) -> Result<Vec<MacAddr>, CaptureError> {
        let kept = self.kept()?;
        let listed = kept.nodes.iter().find(|listed| listed.name == node.as_str());
        let mut macs: Vec<MacAddr> = match (listed, &self.source) {
            (Some(listed), _) => listed.macs.iter().filter_map(|mac| mac.parse().ok()).collect(),
            (None, Some(Source::Alone(plan))) => {
                let machine = plan.machines.list.iter().find(|machine| machine.name == *node);
                machine.map_or_else(Vec::new, |machine| machine.macs.clone())
            }
            (None, _) => Vec::new(),
        };
        macs.truncate(bpf::MAX_MACS);
        if macs.is_empty() { Err(CaptureError::Unknown(node.clone())) } else { Ok(macs) }
    }

    /// The devices of all segments as of now, or those that were named.
    ///
    /// # Errors
    /// What bootd has kept cannot be read.
    pub(super) fn devices(&self) -> Result<BTreeSet<DeviceName>, CaptureError> {
        if !self.devices.is_empty() {
            return Ok(self.devices.clone());
        }
        let kept = self.kept()?;
        let kept = kept.segments.iter().filter_map(|segment| DeviceName::new(&segment.device));
        let mut devices: BTreeSet<_> = kept.collect();
        if let Some(Source::Alone(plan)) = &self.source {
            devices.extend(plan.segments.values().map(|segment| segment.device.clone()));
        }
        Ok(devices)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use croft_proto::Generation;

    use super::*;
    use crate::capture::{More, Taps};
    use crate::desired::Holder;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CaptureArgs,
    }

    /// A site whose file has this at its end.
    fn args(dir: &Path, rest: &str, more: &[&str]) -> CaptureArgs {
        let (file, shown) = (dir.join("bootd.toml"), dir.display());
        let text = format!("state_dir = '{shown}/state'\nimage_dir = '{shown}/images'\n{rest}");
        std::fs::write(&file, text).expect("written");
        let file = file.display().to_string();
        let line = [&["capture", "--config", file.as_str()], more].concat();
        Line::try_parse_from(line).expect("a command line").args
    }

    fn names(devices: &BTreeSet<DeviceName>) -> Vec<&str> {
        devices.iter().map(DeviceName::as_str).collect()
    }

    #[test]
    fn under_control_nodes_and_devices_are_those_of_the_desired_state() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let edge =
            "[edge]\nlisten = '10.255.0.2:7443'\nca = '/a'\ncertificate = '/b'\nkey = '/c'\n";
        let book = Book::open(&args(dir.path(), edge, &["--node", "n1"])).expect("good");
        let n1 = "n1".parse().expect("a name");
        assert!(matches!(book.macs(&n1), Err(CaptureError::Unknown(_))));
        assert!(book.devices().expect("none yet").is_empty());
        std::fs::create_dir(dir.path().join("state")).expect("made");
        let macs = ["52:54:00:00:01:00", "52:54:00:00:01:01"];
        let state = edge::DesiredState {
            generation: Some(Generation { epoch: 1, counter: 1 }.into()),
            nodes: vec![edge::Node {
                name: "n1".to_owned(),
                macs: macs.map(str::to_owned).to_vec(),
                ..edge::Node::default()
            }],
            segments: vec![edge::Segment {
                name: "idle".to_owned(),
                vlan: 10,
                device: "seg10".to_owned(),
                address: "10.10.0.1/24".to_owned(),
                kind: edge::segment::Kind::Idle.into(),
                farm: String::new(),
            }],
            ..edge::DesiredState::default()
        };
        let holder = Holder::open(&dir.path().join("state")).expect("empty");
        assert!(holder.apply(&state).expect("taken"));
        // While it is held.
        let known = book.macs(&n1).expect("known");
        assert_eq!(known.iter().map(ToString::to_string).collect::<Vec<_>>(), macs);
        assert_eq!(names(&book.devices().expect("read")), ["seg10"]);
        let mut begun = Taps::new(book, known, More::default());
        assert_eq!(names(&begun.wanted().expect("read")), ["seg10"]);
        std::fs::write(dir.path().join("state/desired.state"), "nonsense").expect("written");
        assert!(matches!(begun.book.devices(), Err(CaptureError::Kept { .. })));
        assert_eq!(names(&begun.wanted().expect("as before")), ["seg10"], "a capture goes on");
    }

    #[test]
    fn alone_the_file_says_both_before_bootd_ever_ran() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let example = include_str!("../../examples/bootd.toml");
        let (_, segments) = example.split_once("[[segment]]").expect("a segment");
        let rest = format!(
            "[[segment]]{segments}\n[[node]]\nname = 'desk'\nmacs = ['52:54:00:00:07:00']\n"
        );
        let book = Book::open(&args(dir.path(), &rest, &["--node", "desk"])).expect("good");
        let known = book.macs(&"desk".parse().expect("a name")).expect("known");
        assert_eq!(known, ["52:54:00:00:07:00".parse().expect("MAC")]);
        assert_eq!(names(&book.devices().expect("read")), ["eth0"]);
        let named = ["--mac", "52:54:00:00:07:00", "--device", "br0", "--device", "br1"];
        let book = Book::open(&args(dir.path(), &rest, &named)).expect("good");
        assert_eq!(names(&book.devices().expect("read")), ["br0", "br1"]);
        let bad = ["--mac", "52:54:00:00:07:00", "--device", "../eth0"];
        let refused = Book::open(&args(dir.path(), &rest, &bad));
        assert!(matches!(refused, Err(CaptureError::Name(_))));
    }

    #[test]
    fn a_machine_is_named_once_and_a_name_needs_the_file() {
        let parse = |line: &[&str]| Line::try_parse_from([&["capture"], line].concat()).is_ok();
        assert!(parse(&["--device", "br0", "--mac", "52:54:00:00:07:00"]));
        for bad in [
            &["--config", "f"][..],
            &["--mac", "52:54:00:00:07:00"],
            &["--device", "br0", "--node", "n1"],
            &["--config", "f", "--node", "n1", "--mac", "52:54:00:00:07:00"],
            &["--config", "f", "--node", "n1", "--packets", "0"],
            &["--config", "f", "--node", "n1", "--seconds", "100000"],
        ] {
            assert!(!parse(bad), "{bad:?}");
        }
    }
}
