//! What an operator or a tenant changes while farms run.

use crate::fakes::farms::{BLUEPRINTS, SHOP, start};
use crate::fakes::{PATIENCE, Rack, eventually};
use tonic::Code;

/// Path of the check by which balancers judge web servers, as the boot server was last told.
fn balanced_by(rack: &Rack) -> String {
    let state = rack.state.lock();
    let told = state.desired.as_ref().expect("told");
    let check = told.farms[0].balances[0].check.as_ref().expect("a check");
    check.path.clone()
}

/// Paths of the web servers' own checks, in the order of their ordinals.
fn checked_by(rack: &Rack) -> Vec<String> {
    let state = rack.state.lock();
    let told = state.desired.as_ref().expect("told");
    let mut web: Vec<_> = told.assignments.iter().filter(|a| a.tier == "web").collect();
    web.sort_by_key(|assignment| assignment.ordinal);
    web.iter().map(|a| a.health.as_ref().expect("a check").path.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn balancers_check_members_as_they_were_made() {
    let (rack, control) = start(4, |rack| rack.grid("")).await;
    control.apply_farm(SHOP).await.expect("applied");
    control.ready("shop", 3).await;
    assert_eq!(checked_by(&rack), ["/health", "/health"]);
    assert_eq!(balanced_by(&rack), "/health");

    let moved = BLUEPRINTS.replace("\"/health\"", "\"/alive\"");
    assert_ne!(moved, BLUEPRINTS);
    control.apply_blueprints(&moved).await.expect("applied");
    // A third member is made from the new blueprint.
    control.apply_farm(&SHOP.replace("min = 2", "min = 3")).await.expect("applied");
    control.ready("shop", 4).await;
    assert_eq!(checked_by(&rack), ["/health", "/health", "/alive"]);
    assert_eq!(balanced_by(&rack), "/health", "members that run are not checked as they are");

    // Once no member of the old blueprint is left, the new one counts.
    control.delete_farm("shop").await.expect("marked");
    control.gone("shop").await;
    control.apply_farm(SHOP).await.expect("applied");
    control.ready("shop", 3).await;
    eventually("the balancer is told the new check", PATIENCE, || async {
        let (tier, members) = (balanced_by(&rack), checked_by(&rack));
        let same = tier == "/alive" && members == ["/alive", "/alive"];
        if same { Ok(()) } else { Err(format!("{tier} {members:?}")) }
    })
    .await;
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_that_does_not_scale_has_its_min() {
    let (rack, control) = start(5, |rack| rack.grid("")).await;
    let fixed = SHOP.split("[tier.scaling]").next().expect("the tiers");
    let four = fixed.replace("min = 2", "min = 4");
    assert_ne!(four, fixed);
    control.apply_farm(&four).await.expect("applied");
    control.ready("shop", 5).await;
    control.apply_farm(fixed).await.expect("applied");
    control.ready("shop", 3).await;
    let decisions = control.explain("shop", "web").await;
    let shrunk = decisions.iter().find(|d| d.action == "shrink").expect("shrank");
    assert_eq!((shrunk.from, shrunk.to, shrunk.rule.as_str()), (4, 2, "fixed"));
    rack.assert_sound();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_with_members_neither_begins_nor_stops_to_expose_ports() {
    let (rack, control) = start(4, |rack| rack.grid("")).await;
    let expose = "expose = [{ port = 80, tier = \"web\", backend_port = 80 }]\n";
    let inside = SHOP.replace(expose, "");
    assert_ne!(inside, SHOP);
    control.apply_farm(&inside).await.expect("applied");
    control.ready("shop", 3).await;
    let refused = control.apply_farm(SHOP).await.expect_err("accepted");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("tier lb cannot begin to expose"), "{refused:?}");

    // As the message says: without the tier first. Whoever leaves meanwhile does not count.
    let (head, web) = inside.split_once("[[tier]]\nname = \"web\"").expect("two tiers");
    let (head, _) = head.split_once("[[tier]]").expect("the balancer's tier");
    let without = format!("{head}[[tier]]\nname = \"web\"{web}");
    control.apply_farm(&without).await.expect("applied");
    control.apply_farm(SHOP).await.expect("applied");
    control.ready("shop", 3).await;
    assert_eq!(control.farm("shop").await.expect("there").exposed, ["203.0.113.10:80"]);

    let refused = control.apply_farm(&inside).await.expect_err("accepted");
    assert!(refused.message().contains("tier lb cannot stop exposing"), "{refused:?}");
    // What a tier exposes may change as long as it exposes something.
    let moved = SHOP.replace("port = 80, tier", "port = 8080, tier");
    control.apply_farm(&moved).await.expect("applied");
    eventually("the other port is told", PATIENCE, || async {
        let farm = control.farm("shop").await.map_err(|e| e.to_string())?;
        let told = rack.state.lock().desired.as_ref().expect("told").farms[0].balances.clone();
        let told: Vec<_> = told.iter().map(|balance| balance.listen_port).collect();
        let moved = told == [8080] && farm.exposed == ["203.0.113.10:8080"];
        if moved { Ok(()) } else { Err(format!("{told:?} {farm:?}")) }
    })
    .await;
    rack.assert_sound();
}
