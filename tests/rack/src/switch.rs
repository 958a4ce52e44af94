//! The switch: Open vSwitch with its datapath in user space.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::plan::{BRIDGE, DEAD_VLAN, EXTERNAL_VLAN, FABRIC_NS, IDLE_VLAN, INTERNET_DEVICE};
use crate::tools::{
    OVS_OFCTL, OVS_SCHEMA, OVS_VSCTL, OVS_VSWITCHD, OVSDB_SERVER, OVSDB_TOOL, command,
    in_namespace, run, run_with_input,
};
use crate::{NodeInfo, RackError, RackInfo, wait_until};

/// How long the switch may take to come up; it takes well below a second on an idle machine.
const START: Duration = Duration::from_secs(30);
/// OpenFlow numbers of bootd's legs count from here, above those of the nodes' ports.
const FIRST_LEG: usize = 1000;
/// OpenFlow number of the internet's port.
const INTERNET_PORT: usize = 2000;

/// The switch's two daemons. They end with this value.
#[derive(Debug)]
pub(crate) struct Switch {
    database: Child,
    datapath: Child,
    log_dir: PathBuf,
}

impl Switch {
    /// Starts the switch with every port of the rack, wired as an idle rack is.
    ///
    /// # Errors
    /// A program cannot be started, fails or is not ready in time.
    pub(crate) async fn start(rack: &RackInfo) -> Result<Self, RackError> {
        let dir = rack.ovs_dir();
        std::fs::create_dir_all(&dir).map_err(RackError::file("make", &dir))?;
        let file = |name: &str| dir.join(name).display().to_string();
        let (conf, socket) = (file("conf.db"), file("db.sock"));
        run(command(OVSDB_TOOL, &["create", &conf, OVS_SCHEMA])).await?;
        let ovsdb = rack.control_lan.ovsdb;
        let database = daemon(
            rack,
            OVSDB_SERVER,
            &[
                &conf,
                &format!("--remote=punix:{socket}"),
                &format!("--remote=ptcp:{}:{}", ovsdb.port(), ovsdb.ip()),
                &format!("--unixctl={}", file("ovsdb-server.ctl")),
                &format!("--log-file={}", file("ovsdb-server.log")),
            ],
        )?;
        wait_until(START, "the switch's database socket", || {
            let there = dir.join("db.sock").exists();
            async move { there.then_some(()) }
        })
        .await?;
        let db = format!("--db=unix:{socket}");
        run(command(OVS_VSCTL, &[&db, "--no-wait", "init"])).await?;
        let datapath = daemon(
            rack,
            OVS_VSWITCHD,
            &[
                &format!("unix:{socket}"),
                &format!("--unixctl={}", file("ovs-vswitchd.ctl")),
                &format!("--log-file={}", file("ovs-vswitchd.log")),
            ],
        )?;
        let switch = Self { database, datapath, log_dir: dir };
        let timeout = format!("--timeout={}", START.as_secs());
        let mut wiring = command(OVS_VSCTL, &[&db, &timeout]);
        wiring.args(wiring_arguments(rack));
        run(wiring).await?;
        load_flows(rack).await?;
        Ok(switch)
    }

    /// Waits until one of the daemons has ended, which neither should.
    pub(crate) async fn died(&mut self) -> RackError {
        let (program, status) = tokio::select! {
            status = self.database.wait() => ("ovsdb-server", status),
            status = self.datapath.wait() => ("ovs-vswitchd", status),
        };
        let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        RackError::Died { program, status, log: self.log_dir.join(format!("{program}.log")) }
    }
}

fn daemon(rack: &RackInfo, program: &'static str, args: &[&str]) -> Result<Child, RackError> {
    let dir = rack.ovs_dir();
    in_namespace(FABRIC_NS, program)
        .args(args)
        .args(["-vconsole:off", "-vsyslog:off", "--no-chdir"])
        .envs([("OVS_RUNDIR", &dir), ("OVS_LOGDIR", &dir), ("OVS_DBDIR", &dir)])
        .current_dir(&dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C on the terminal is for the rack's command, not for the rack.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| RackError::Start { program: program.to_owned(), source })
}

/// One transaction that makes the bridge and all ports, for ovs-vsctl.
fn wiring_arguments(rack: &RackInfo) -> Vec<String> {
    let mut text = format!(
        // Fail mode "secure": without the flows below, nothing is forwarded at all.
        "-- --if-exists del-br {BRIDGE} -- add-br {BRIDGE} \
         -- set bridge {BRIDGE} datapath_type=netdev fail_mode=secure"
    );
    let mut port = |name: &str, columns: &str, number: usize, more: &str| {
        text += &format!(
            " -- add-port {BRIDGE} {name} {columns} vlan_mode=access \
             -- set interface {name} ofport_request={number}{more}"
        );
    };
    for (i, segment) in rack.segments.iter().enumerate() {
        port(&segment.device, &format!("tag={}", segment.vlan), FIRST_LEG + i, " type=internal");
    }
    port(INTERNET_DEVICE, &format!("tag={EXTERNAL_VLAN}"), INTERNET_PORT, " type=internal");
    for node in &rack.nodes {
        port(&node.ports[0], &format!("tag={IDLE_VLAN}"), flow_number(node, 0), "");
        // Protected ports do not talk to each other: access ports of one VLAN otherwise would,
        // even of the VLAN that leads nowhere.
        let dead = format!("tag={DEAD_VLAN} protected=true");
        port(&node.ports[1], &dead, flow_number(node, 1), "");
    }
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// OpenFlow number of a node's port: 2, 3 for n1, 4, 5 for n2, …
fn flow_number(node: &NodeInfo, nic: usize) -> usize {
    2 * usize::from(node.index) + nic
}

/// What is forwarded: from a node's port only frames with that NIC's own source address, so that
/// no node can draw another's frames to itself; everything from the rack's own ports. Where they
/// go is ordinary learning and VLANs. Anything else is dropped.
fn flows(rack: &RackInfo) -> String {
    let mut text = String::from("priority=0,actions=drop\n");
    for node in &rack.nodes {
        for (nic, mac) in node.macs.iter().enumerate() {
            let number = flow_number(node, nic);
            text += &format!("priority=100,in_port={number},dl_src={mac},actions=NORMAL\n");
        }
    }
    let legs = (0..rack.segments.len()).map(|i| FIRST_LEG + i);
    for number in legs.chain([INTERNET_PORT]) {
        text += &format!("priority=100,in_port={number},actions=NORMAL\n");
    }
    text
}

async fn load_flows(rack: &RackInfo) -> Result<(), RackError> {
    let socket = rack.ovs_dir().join(format!("{BRIDGE}.mgmt"));
    let target = format!("unix:{}", socket.display());
    let mut ofctl = command(OVS_OFCTL, &["--bundle", "replace-flows", &target, "-"]);
    ofctl.args(["-O", "OpenFlow14"]);
    run_with_input(ofctl, &flows(rack)).await?;
    Ok(())
}

/// A command that reads or writes the switch over OVSDB, as control does.
pub(crate) fn vsctl(rack: &RackInfo) -> Command {
    let db = format!("--db=tcp:{}", rack.control_lan.ovsdb);
    command(OVS_VSCTL, &[&db, "--timeout=10"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_port_may_send_from_its_own_address_only() {
        let options = crate::plan::tests::options();
        let rack = RackInfo::plan(&options, &options.dir).expect("valid");
        let flows = flows(&rack);
        assert!(flows.contains("in_port=4,dl_src=52:54:00:00:02:00,actions=NORMAL"));
        assert!(flows.contains("in_port=5,dl_src=52:54:00:00:02:01,actions=NORMAL"));
        for line in flows.lines().filter(|line| line.contains("NORMAL")) {
            let own = line.contains("dl_src=")
                || line.contains("in_port=10")
                || line.contains("in_port=2000");
            assert!(own, "{line} lets any source pass");
        }
        let wiring = wiring_arguments(&rack).join(" ");
        assert!(wiring.contains("fail_mode=secure"));
        assert!(wiring.contains("add-port br0 n2p1 tag=4000"));
    }
}
