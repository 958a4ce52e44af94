//! What an operator or a tenant changes while farms run.

mod fakes;

use fakes::control::Control;
use fakes::{PATIENCE, Rack, eventually};

const BLUEPRINTS: &str = include_str!("../../images/examples/blueprints.toml");
const SHOP: &str = include_str!("../../images/examples/shop.toml");

async fn start(nodes: usize) -> (Rack, Control) {
    let rack = Rack::start(nodes).await;
    let control = Control::start(rack.path()).await;
    control.apply_grid(&rack.grid("")).await.expect("applied");
    control.apply_blueprints(BLUEPRINTS).await.expect("applied");
    (rack, control)
}

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
    let (rack, control) = start(4).await;
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
