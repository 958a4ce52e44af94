//! Organizations side by side: what one may neither break nor learn of another.

mod fakes;

use fakes::Rack;
use fakes::control::Control;

const BLUEPRINTS: &str = include_str!("../../images/examples/blueprints.toml");

async fn start(nodes: usize) -> (Rack, Control) {
    let rack = Rack::start(nodes).await;
    let control = Control::start(rack.path()).await;
    control.apply_grid(&rack.grid("")).await.expect("applied");
    control.apply_blueprints(BLUEPRINTS).await.expect("applied");
    (rack, control)
}

/// A farm of one web server.
fn farm(organization: &str, name: &str, tier: &str) -> String {
    format!(
        "[farm]\nname = '{name}'\norganization = '{organization}'\n\
         [[tier]]\nname = '{tier}'\nblueprint = 'web-server'\nmin = 1\nmax = 1\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn farms_whose_names_read_alike_live_side_by_side() {
    let (rack, control) = start(3).await;
    control.apply_farm(&farm("acme", "shop-eu", "web")).await.expect("applied");
    control.apply_farm(&farm("globex", "shop", "eu-web")).await.expect("applied");
    control.ready("shop-eu", 1).await;
    control.ready("shop", 1).await;
    rack.assert_sound();
    let roots: Vec<_> = {
        let state = rack.state.lock();
        let told = state.desired.as_ref().expect("told");
        told.assignments.iter().map(|a| a.root_volume.clone()).collect()
    };
    assert_eq!(roots.len(), 2);
    assert_ne!(roots[0], roots[1]);
}
