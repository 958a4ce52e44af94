//! Data volumes: who is given them, and what neither an edit nor a failure may do to them.

use std::collections::BTreeMap;

use crate::fakes::control::Control;
use crate::fakes::farms::{BLUEPRINTS, SHOP, start};
use crate::fakes::{PATIENCE, Rack, eventually};
use croft_proto::edge;
use tonic::Code;

const POLICY: &str = "[policy]\nquarantine_s = 1\n";

/// The examples with data volumes for web servers.
fn blueprints(data: &str) -> String {
    let text = BLUEPRINTS.replace("[\"shop-content\"]", &format!("[\"shop-content\", {data}]"));
    assert_ne!(text, BLUEPRINTS);
    text
}

fn table(name: &str, kind: &str, size_mib: u64) -> String {
    format!("{{ name = \"{name}\", kind = \"{kind}\", size_mib = {size_mib} }}")
}

/// The shop with so many web servers, which do not scale.
fn shop(web: u32) -> String {
    let fixed = SHOP.split("[tier.scaling]").next().expect("the tiers");
    fixed.replace("min = 2", &format!("min = {web}"))
}

/// Data volumes that the boot server was told, with their sizes in MiB.
fn told(rack: &Rack) -> BTreeMap<String, u64> {
    let state = rack.state.lock();
    let volumes = state.desired.iter().flat_map(|desired| &desired.volumes);
    let kept = volumes.filter(|v| {
        matches!(v.kind(), edge::volume::Kind::Exclusive | edge::volume::Kind::SharedReadWrite)
    });
    kept.map(|v| (v.id.clone(), v.size_bytes >> 20)).collect()
}

/// Who serves which member, with its data volumes.
fn given(rack: &Rack) -> BTreeMap<String, (String, Vec<String>)> {
    let state = rack.state.lock();
    let assignments = state.desired.iter().flat_map(|desired| &desired.assignments);
    let web = assignments.filter(|a| a.tier == "web");
    web.map(|a| (a.host_name.clone(), (a.node.clone(), a.data_volumes[1..].to_vec()))).collect()
}

async fn told_is(rack: &Rack, what: &str, expected: &[(&str, u64)]) {
    let expected: BTreeMap<_, _> =
        expected.iter().map(|(id, mib)| ((*id).to_owned(), *mib)).collect();
    eventually(what, PATIENCE, || async {
        let told = told(rack);
        if told == expected { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

async fn refused(control: &Control, blueprints: &str, why: &str) {
    let refused = control.apply_blueprints(blueprints).await.expect_err(why);
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains(why), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn data_outlives_nodes_members_and_edits_and_goes_with_its_farm() {
    let (rack, control) = start(5, |rack| rack.grid(POLICY)).await;
    let both = |own: u64, shared: u64| {
        blueprints(&format!("{}, {}", table("pg", "exclusive", own), table("fs", "shared", shared)))
    };
    control.apply_blueprints(&both(64, 32)).await.expect("applied");
    control.apply_farm(&shop(2)).await.expect("applied");
    control.ready("shop", 3).await;
    let all = [("own-shop-web-1-pg", 64), ("own-shop-web-2-pg", 64), ("shared-shop-fs", 32)];
    told_is(&rack, "the volumes are told", &all).await;
    let before = given(&rack);
    let second = vec!["own-shop-web-2-pg".to_owned(), "shared-shop-fs".to_owned()];
    assert_eq!(before["shop-web-2"].1, second);
    let volumes = control.farm("shop").await.expect("there").volumes;
    let shown: Vec<_> = volumes.iter().map(|v| (v.id.as_str(), v.member.as_str())).collect();
    assert_eq!(shown[1..], [("own-shop-web-2-pg", "shop/web/2"), ("shared-shop-fs", "")]);

    // Another node serves the member: it has the same data, once the first one is fenced.
    let victim = before["shop-web-2"].0.clone();
    rack.state.lock().power_off(&victim);
    eventually("another node has the data", PATIENCE, || async {
        let now = given(&rack);
        let moved =
            now.get("shop-web-2").is_some_and(|(node, data)| *node != victim && *data == second);
        if moved { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    control.ready("shop", 3).await;

    // A tier that shrinks and grows again: the same member, the same data.
    control.apply_farm(&shop(1)).await.expect("applied");
    control.ready("shop", 2).await;
    told_is(&rack, "what a member leaves stays", &all).await;
    control.apply_farm(&shop(2)).await.expect("applied");
    control.ready("shop", 3).await;
    assert_eq!(given(&rack)["shop-web-2"].1, second);

    // Larger at once, also for members that were made before; nothing shrinks or changes its kind.
    let reply = control.apply_blueprints(&both(128, 32)).await.expect("applied");
    assert!(reply.changes[0].contains("larger data volumes grow now"), "{reply:?}");
    let grown = [("own-shop-web-1-pg", 128), ("own-shop-web-2-pg", 128), ("shared-shop-fs", 32)];
    told_is(&rack, "the volumes are longer", &grown).await;
    refused(&control, &both(64, 32), "volumes do not shrink; ask for 128 or more").await;
    refused(&control, &both(128, 31), "volume shared-shop-fs has 32 MiB").await;
    refused(&control, &blueprints(&table("pg", "shared", 128)), "give that another name").await;

    // A blueprint that names them no more: they stay for their farm.
    control.apply_blueprints(BLUEPRINTS).await.expect("applied");
    control.apply_farm(&shop(3)).await.expect("applied");
    control.ready("shop", 4).await;
    told_is(&rack, "what is not named stays", &grown).await;
    assert_eq!(given(&rack)["shop-web-3"].1, [""; 0]);

    control.delete_farm("shop").await.expect("marked");
    control.gone("shop").await;
    rack.assert_all_idle();
    rack.assert_sound();
    let events = control.events(0).await;
    let of = |kind: &str| events.iter().filter(|e| e.kind == kind && e.farm == "shop").count();
    assert_eq!((of("volume-created"), of("volume-grows")), (3, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_goes_only_when_the_boot_server_has_let_go_of_its_data() {
    let (rack, control) = start(3, |rack| rack.grid(POLICY)).await;
    control.apply_blueprints(&blueprints(&table("fs", "shared", 8))).await.expect("applied");
    control.apply_farm(&shop(1)).await.expect("applied");
    control.ready("shop", 2).await;
    // It still has what it was told to drop.
    rack.state.lock().keeps_dropped = vec!["shared-shop-fs".to_owned()];
    control.delete_farm("shop").await.expect("marked");
    control.all_idle().await;
    told_is(&rack, "the volume is dropped", &[]).await;
    let farm = control.farm("shop").await.expect("gone while its data is there");
    assert_eq!(farm.state, "deleting");
    let refused = control.apply_farm(&shop(1)).await.expect_err("accepted");
    assert!(refused.message().contains("is being deleted"), "{refused:?}");
    rack.state.lock().keeps_dropped.clear();
    control.gone("shop").await;
    rack.assert_all_idle();
    rack.assert_sound();
}
