//! Power of nodes, where no control switches it.

use croft_rack::{Node, Rack};

/// Asks a node's BMC for a reset of this kind (Redfish's `ResetType`).
///
/// # Errors
/// The BMC does not answer, or refuses.
pub async fn power(rack: &Rack, node: &Node, reset: &str) -> anyhow::Result<()> {
    let url =
        format!("http://{}/redfish/v1/Systems/1/Actions/ComputerSystem.Reset", node.info().bmc);
    reqwest::Client::new()
        .post(url)
        .basic_auth(&rack.info().bmc_user, Some(rack.bmc_password()?.expose()))
        .json(&serde_json::json!({ "ResetType": reset }))
        .send()
        .await?
        .error_for_status()?;
    Ok(())
}
