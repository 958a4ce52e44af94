//! The farm of the tests that kill: a balancer and a web server.

use super::control::Control;

pub const BLUEPRINTS: &str = include_str!("../../../images/examples/blueprints.toml");

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
