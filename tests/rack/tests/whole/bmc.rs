//! The BMCs, with real machines behind them that sit in their firmware.

use std::time::Duration;

use crate::common::{Bmc, SYSTEM, ask, in_rack, wait_for_console};
use croft_rack::Rack;

#[test]
fn a_bmc_powers_its_node() {
    in_rack("bmc::a_bmc_powers_its_node", &["--nodes", "1"], powers);
}

async fn powers(rack: Rack) {
    let node = rack.node("n1").expect("n1");
    let bmc = Bmc::of(&rack, &node);

    // Without the right credentials there is nothing but the service root.
    assert_eq!(ask(bmc.address, None, "GET", "/redfish/v1/", "").await.0, 200);
    let reset = format!("{SYSTEM}/Actions/ComputerSystem.Reset");
    for wrong in [None, Some("croft:"), Some("root:calvin"), Some("croft")] {
        assert_eq!(ask(bmc.address, wrong, "GET", SYSTEM, "").await.0, 401, "{wrong:?}");
        let on = r#"{"ResetType":"On"}"#;
        assert_eq!(ask(bmc.address, wrong, "POST", &reset, on).await.0, 401, "{wrong:?}");
    }
    assert_eq!(bmc.power().await, "Off");
    assert_eq!(node.qemu_pid().expect("pid"), None);

    // A boot override holds for one boot.
    let once = r#"{"Boot":{"BootSourceOverrideTarget":"Pxe","BootSourceOverrideEnabled":"Once"}}"#;
    assert_eq!(bmc.patch(once).await, 204);
    assert_eq!(bmc.get().await["Boot"]["BootSourceOverrideTarget"], "Pxe");
    let disk = r#"{"Boot":{"BootSourceOverrideTarget":"Hdd","BootSourceOverrideEnabled":"Once"}}"#;
    assert_eq!(bmc.patch(disk).await, 400);
    assert_eq!(bmc.reset("On").await, 204);
    assert_eq!(bmc.get().await["Boot"]["BootSourceOverrideEnabled"], "Disabled");
    assert_eq!(bmc.power().await, "On");
    let pid = node.qemu_pid().expect("pid file").expect("runs");
    wait_for_console(&node, 0, "SeaBIOS", Duration::from_secs(20)).await;

    // On again changes nothing; a restart keeps the machine and starts its firmware anew.
    assert_eq!(bmc.reset("On").await, 204);
    let before = node.console_len().expect("console");
    assert_eq!(bmc.reset("ForceRestart").await, 204);
    wait_for_console(&node, before, "SeaBIOS", Duration::from_secs(20)).await;
    assert_eq!(node.qemu_pid().expect("pid file"), Some(pid));

    // Firmware does not answer the power button: only force helps.
    assert_eq!(bmc.reset("GracefulShutdown").await, 204);
    assert_eq!(bmc.power().await, "On");
    assert_eq!(bmc.reset("ForceOff").await, 204);
    assert_eq!(bmc.power().await, "Off");
    assert_eq!(node.qemu_pid().expect("pid file"), None);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "QEMU still runs");
    assert_eq!(bmc.reset("ForceOff").await, 204);
    assert_eq!(bmc.reset("ForceRestart").await, 409);
    assert_eq!(bmc.reset("Nmi").await, 400);

    // A machine that dies is off.
    assert_eq!(bmc.reset("On").await, 204);
    node.kill_qemu().await.expect("it runs");
    bmc.wait_for("Off").await;
}

#[test]
fn the_password_is_for_its_owner_alone() {
    in_rack("bmc::the_password_is_for_its_owner_alone", &["--nodes", "1"], async |rack: Rack| {
        use std::os::unix::fs::PermissionsExt;
        let path = &rack.info().bmc_password_file;
        let mode = std::fs::metadata(path).expect("password file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let password = rack.bmc_password().expect("password");
        for file in ["rack.json", "grid.toml", "rack.log"] {
            let text = std::fs::read_to_string(rack.dir().join(file)).expect("file");
            assert!(!text.contains(password.expose()), "{file} has the password");
        }
    });
}
