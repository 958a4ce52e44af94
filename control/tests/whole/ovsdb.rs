//! The switch driver against the real `ovsdb-server`: what our fake takes for granted is so.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::fakes::control::Control;
use crate::fakes::{DEAD_VLAN, IDLE_VLAN, Rack, eventually};
use tokio::process::{Child, Command};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

async fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().await;
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; install openvswitch-switch"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// A database with bridge br0 and the ports of n1, wrong in different ways.
async fn database(dir: &Path) -> (Child, String) {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        listener.local_addr().expect("bound").port()
    };
    let file = dir.join("conf.db").display().to_string();
    run("ovsdb-tool", &["create", &file, SCHEMA]).await;
    let server = Command::new("ovsdb-server")
        .args([&format!("--remote=ptcp:{port}:127.0.0.1"), "--no-chdir", "-vconsole:off"])
        .arg(format!("--unixctl={}", dir.join("ctl").display()))
        .arg(&file)
        .kill_on_drop(true)
        .spawn()
        .expect("ovsdb-server starts; install openvswitch-switch");
    let db = format!("--db=tcp:127.0.0.1:{port}");
    eventually("ovsdb-server answers", Duration::from_secs(20), || async {
        let probe = Command::new("ovs-vsctl").args([&db, "--no-wait", "init"]).output().await;
        let probe = probe.map_err(|e| e.to_string())?;
        if probe.status.success() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let vsctl = |args: Vec<&str>| {
        let args: Vec<_> =
            [db.as_str(), "--no-wait"].iter().chain(&args).map(ToString::to_string).collect();
        async move { run("ovs-vsctl", &args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    vsctl(vec!["add-br", "br0"]).await;
    vsctl(vec!["add-port", "br0", "n1p0", "tag=77"]).await;
    vsctl(vec!["add-port", "br0", "n1p1"]).await;
    vsctl(vec!["set", "port", "n1p1", "trunks=5", "vlan_mode=trunk"]).await;
    // No vswitchd runs here: all that may be asked for counts as done.
    vsctl(vec!["set", "open_vswitch", ".", "cur_cfg=1000000"]).await;
    (server, db)
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_put_into_the_idle_segment_of_a_real_switch() {
    let rack = Rack::start(1).await;
    let (server, db) = database(rack.path()).await;
    let control = Control::start(rack.path()).await;
    let address = db.trim_start_matches("--db=tcp:");
    let grid = rack.grid("").replace(&rack.switch.to_string(), address);
    control.apply_grid(&grid).await.expect("applied");
    eventually("both ports are right", Duration::from_secs(30), || async {
        let port = |name: &'static str| {
            let columns = "tag,trunks,vlan_mode";
            let db = db.clone();
            async move {
                let args = [&db, "--bare", "--columns", columns, "list", "port", name];
                let args = args.map(String::from);
                run("ovs-vsctl", &args.each_ref().map(String::as_str)).await
            }
        };
        let (first, second) = (port("n1p0").await, port("n1p1").await);
        let want = |vlan: u16| format!("{vlan}\n\naccess");
        let right = first == want(IDLE_VLAN) && second == want(DEAD_VLAN);
        if right { Ok(()) } else { Err(format!("{first:?} {second:?}")) }
    })
    .await;
    let nodes = control.nodes().await;
    let vlans: Vec<_> = nodes[0].ports.iter().map(|port| port.vlan).collect();
    assert_eq!(vlans, [u32::from(IDLE_VLAN), u32::from(DEAD_VLAN)]);
    drop(server);
}
