//! Farms to work with: the examples, and for the tests that kill a balancer and a web server.

use super::Rack;
use super::control::Control;

pub const BLUEPRINTS: &str = include_str!("../../../../images/examples/blueprints.toml");

pub const SHOP: &str = include_str!("../../../../images/examples/shop.toml");
pub const BANK: &str = include_str!("../../../../images/examples/bank.toml");

pub const FARM: &str = "
[farm]
name = 'shop'
organization = 'acme'
[[tier]]
name = 'lb'
blueprint = 'load-balancer'
min = 1
max = 1
expose = [{ port = 80, tier = 'web', backend_port = 80 }]
[[tier]]
name = 'web'
blueprint = 'web-server'
min = 1
max = 2
";

/// Members of the farm.
pub const MEMBERS: u32 = 2;

/// A rack, and a control that has this grid of it and the example blueprints.
pub async fn start(nodes: usize, grid: impl FnOnce(&Rack) -> String) -> (Rack, Control) {
    let rack = Rack::start(nodes).await;
    let control = Control::start(rack.path()).await;
    assert!(control.apply_grid(&grid(&rack)).await.expect("applied").changed);
    assert!(control.apply_blueprints(BLUEPRINTS).await.expect("applied").changed);
    (rack, control)
}

/// All members serve.
pub async fn is_ready(control: &Control) -> bool {
    let Ok(farm) = control.farm("shop").await else { return false };
    farm.state == "ready" && farm.tiers.iter().map(|tier| tier.in_service).sum::<u32>() == MEMBERS
}

/// Nothing is left of the farm.
pub async fn is_gone(control: &Control) -> bool {
    control.farm("shop").await.is_err()
        && control.nodes().await.iter().all(|node| node.state == "Idle")
}
