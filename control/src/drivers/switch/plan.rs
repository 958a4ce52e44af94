//! From the rows of a switch's `Port` table to the operations that make its ports right.

use croft_proto::VlanId;
use serde_json::{Value, json};

/// A port and the VLAN it should be an access port of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort {
    /// The port.
    pub port: String,
    /// Its VLAN.
    pub vlan: VlanId,
    /// Whether it may not talk to other isolated ports of that VLAN: nodes that share a VLAN but
    /// no farm (idle, dead, external) reach the site's own ports only, never each other.
    pub isolated: bool,
}

/// A row of the `Port` table (ovs-vswitchd.conf.db(5)), as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRow {
    /// `_uuid`.
    pub uuid: String,
    /// Whether the bridge has it.
    pub on_bridge: bool,
    /// `tag`.
    pub tag: Option<u16>,
    /// The other columns that decide which frames it carries, as read.
    pub trunks: Value,
    /// `vlan_mode`, as read.
    pub vlan_mode: Value,
    /// `protected`.
    pub protected: bool,
}

fn empty_set() -> Value {
    json!(["set", []])
}

impl PortRow {
    /// Reads a row of a `select`.
    pub fn parse(row: &Value, bridge_ports: &[String]) -> Result<Self, String> {
        let uuid = match row.get("_uuid").and_then(Value::as_array).map(Vec::as_slice) {
            Some([Value::String(tag), Value::String(uuid)]) if tag == "uuid" => uuid.clone(),
            _ => return Err("a row without _uuid".to_owned()),
        };
        let column = |name: &str| row.get(name).cloned().ok_or(format!("a row without {name}"));
        let tag = match column("tag")? {
            Value::Number(tag) => Some(
                tag.as_u64().and_then(|tag| u16::try_from(tag).ok()).ok_or("a tag out of range")?,
            ),
            set if set == empty_set() => None,
            _ => return Err("a tag that is no number".to_owned()),
        };
        let on_bridge = bridge_ports.contains(&uuid);
        let (trunks, vlan_mode) = (column("trunks")?, column("vlan_mode")?);
        let protected = column("protected")?.as_bool().ok_or("protected is no truth value")?;
        Ok(Self { uuid, on_bridge, tag, trunks, vlan_mode, protected })
    }

    /// Whether it carries the wanted VLAN, untagged, and nothing else, isolated or not as wanted.
    pub fn is_as(&self, wanted: &WantedPort) -> bool {
        self.tag == Some(wanted.vlan.get())
            && self.protected == wanted.isolated
            && self.trunks == empty_set()
            && (self.vlan_mode == "access" || self.vlan_mode == empty_set())
    }

    /// The operations that make it so, provided that nobody has changed it since it was read.
    pub fn make(&self, wanted: &WantedPort) -> [Value; 2] {
        let this = json!([["_uuid", "==", ["uuid", self.uuid]]]);
        let tag = self.tag.map_or_else(empty_set, Value::from);
        [
            json!({
                "op": "wait", "table": "Port", "timeout": 0, "where": this, "until": "==",
                "columns": ["tag", "trunks", "vlan_mode", "protected"],
                "rows": [{
                    "tag": tag, "trunks": self.trunks, "vlan_mode": self.vlan_mode,
                    "protected": self.protected,
                }],
            }),
            json!({
                "op": "update", "table": "Port", "where": this,
                "row": {
                    "tag": wanted.vlan.get(), "trunks": empty_set(), "vlan_mode": "access",
                    "protected": wanted.isolated,
                },
            }),
        ]
    }
}

/// What must be done to a switch's ports.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PortPlan {
    /// Operations, in the order in which they must be sent.
    pub to_apply: Vec<Value>,
    /// Ports that the bridge does not have.
    pub missing: Vec<String>,
}

/// Compares ports with what they should be.
pub fn plan(wanted: &[WantedPort], rows: &[Option<PortRow>]) -> PortPlan {
    let mut plan = PortPlan::default();
    for (want, row) in wanted.iter().zip(rows) {
        match row {
            Some(row) if row.on_bridge && row.is_as(want) => {}
            Some(row) if row.on_bridge => plan.to_apply.extend(row.make(want)),
            _ => plan.missing.push(want.port.clone()),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vlan(id: u32) -> VlanId {
        id.try_into().expect("valid")
    }

    fn row(tag: Value, trunks: Value, mode: Value) -> PortRow {
        let row = json!({"_uuid": ["uuid", "u1"], "tag": tag, "trunks": trunks, "vlan_mode": mode, "protected": false});
        PortRow::parse(&row, &["u1".to_owned()]).expect("valid")
    }

    fn wanted() -> Vec<WantedPort> {
        vec![WantedPort { port: "n1p0".to_owned(), vlan: vlan(100), isolated: false }]
    }

    #[test]
    fn a_port_as_wanted_is_left_alone() {
        for mode in [json!("access"), empty_set()] {
            let plan = plan(&wanted(), &[Some(row(json!(100), empty_set(), mode))]);
            assert_eq!(plan, PortPlan::default());
        }
    }

    #[test]
    fn a_trunk_with_the_right_tag_is_still_wrong() {
        for row in [
            row(json!(100), json!(["set", [100, 200]]), empty_set()),
            row(json!(100), empty_set(), json!("native-untagged")),
            row(empty_set(), empty_set(), empty_set()),
            row(json!(10), empty_set(), json!("access")),
        ] {
            let plan = plan(&wanted(), &[Some(row)]);
            assert_eq!(plan.to_apply.len(), 2);
            assert_eq!(plan.to_apply[0]["op"], "wait");
            assert_eq!(plan.to_apply[1]["row"]["tag"], 100);
        }
    }

    #[test]
    fn a_port_that_should_be_isolated_and_is_not_is_wrong() {
        let mut wanted = wanted();
        wanted[0].isolated = true;
        let todo = plan(&wanted, &[Some(row(json!(100), empty_set(), json!("access")))]);
        assert_eq!(todo.to_apply[1]["row"]["protected"], true);
    }

    #[test]
    fn a_port_of_another_bridge_is_missing() {
        let mut stranger = row(json!(100), empty_set(), empty_set());
        stranger.on_bridge = false;
        assert_eq!(plan(&wanted(), &[Some(stranger)]).missing, ["n1p0"]);
        assert_eq!(plan(&wanted(), &[None]).missing, ["n1p0"]);
    }

    proptest! {
        /// Applying a plan makes the next one empty.
        #[test]
        fn a_plan_done_is_a_plan_empty(tag in prop::option::of(0u16..4096), want in 1u32..4095, trunk: bool, isolated: bool) {
            let trunks = if trunk { json!(["set", [1, 2]]) } else { empty_set() };
            let before = row(tag.map_or_else(empty_set, Value::from), trunks, empty_set());
            let wanted = [WantedPort { port: "p".to_owned(), vlan: vlan(want), isolated }];
            let first = plan(&wanted, &[Some(before.clone())]);
            if let Some(update) = first.to_apply.last() {
                let done = &update["row"];
                let mut after =
                    row(done["tag"].clone(), done["trunks"].clone(), done["vlan_mode"].clone());
                after.protected = done["protected"] == true;
                prop_assert!(plan(&wanted, &[Some(after)]).to_apply.is_empty());
            } else {
                prop_assert!(before.is_as(&wanted[0]));
            }
        }
    }
}
