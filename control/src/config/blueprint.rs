//! `blueprints.toml`.

use std::collections::BTreeMap;
use std::str::FromStr;

use croft_proto::checked_toml::{Faults, Table, read};
use croft_proto::{BlueprintName, BootMethod, HealthTarget, ImageRef, read_data, read_health};

use super::ranges::Word;
use crate::model::{Blueprint, Health, Root};

/// Reads blueprints, in the file's order.
///
/// # Errors
/// Every fault, with line and key.
pub fn parse_blueprints(text: &str) -> Result<Vec<Blueprint>, Faults> {
    read(text, |doc| {
        if !doc.has("blueprint") {
            doc.fault("blueprint", "is missing: the file has one [[blueprint]] or more");
        }
        let mut seen: BTreeMap<BlueprintName, ()> = BTreeMap::new();
        let mut blueprints = Vec::new();
        for mut table in doc.tables("blueprint") {
            let blueprint = blueprint(&mut table);
            if let Some(blueprint) = blueprint {
                if seen.insert(blueprint.name.clone(), ()).is_some() {
                    table.fault("name", format!("{} is defined twice", blueprint.name));
                }
                blueprints.push(blueprint);
            }
        }
        Some(blueprints)
    })
}

fn blueprint(table: &mut Table<'_>) -> Option<Blueprint> {
    let name = table.required("name");
    let role = table.required("role");
    let image = table.required::<ImageRef>("image");
    let method = table.required::<BootMethod>("boot");
    let args = table.optional::<KernelArgs>("kernel_args");
    let root = root(table, method);
    let data = read_data(table);
    if !data.is_empty() && method.is_some_and(|method| !method.has_root()) {
        table.fault("data", "needs boot = \"iscsi\" or \"san\"");
    }
    let health = table.table("health").and_then(|mut table| health(&mut table));
    Some(Blueprint {
        name: name?,
        role: role?,
        image: image?,
        method: method?,
        kernel_args: args.map_or_else(String::new, |KernelArgs(args)| args),
        root: root?,
        data,
        health: health?,
    })
}

fn root(table: &mut Table<'_>, method: Option<BootMethod>) -> Option<Root> {
    let has_root = method.is_none_or(BootMethod::has_root);
    if !has_root {
        if table.optional_table("root").is_some() {
            table.fault("root", "this boot method has no root volume");
        }
        return Some(Root { persistent: false, size_mib: 0 });
    }
    let mut root = table.table("root")?;
    let kind = root.required::<Word<32>>("kind");
    let size = root.optional_integer("size_mib", 1..=16 << 20);
    let persistent = match kind?.0.as_str() {
        "ephemeral" => false,
        "persistent" => true,
        other => {
            root.fault(
                "kind",
                format!("{other:?} is not a kind; these are: ephemeral, persistent"),
            );
            return None;
        }
    };
    Some(Root { persistent, size_mib: size.unwrap_or(0) })
}

fn health(table: &mut Table<'_>) -> Option<Health> {
    let check = read_health(table)?;
    let (interval_ms, timeout_ms) = (check.interval_ms, check.timeout_ms);
    Some(match HealthTarget::try_from(&check).ok()? {
        HealthTarget::None => Health::None,
        HealthTarget::Tcp(port) => Health::Tcp { port, interval_ms, timeout_ms },
        HealthTarget::Http(port, path) => {
            Health::Http { port, path: path.into(), interval_ms, timeout_ms }
        }
    })
}

/// Kernel arguments: anybody on the node can read them, so nothing that looks like a secret.
struct KernelArgs(String);

impl FromStr for KernelArgs {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // What boot servers accept: nothing that a boot script or a shell could read as its own.
        let legal = |b: u8| b.is_ascii_alphanumeric() || b" =.,:/_-+@%".contains(&b);
        if s.len() > 1024 || !s.bytes().all(legal) {
            let message =
                "may hold letters, digits, spaces and = . , : / _ - + @ %, up to 1024 bytes";
            return Err(message.to_owned());
        }
        let lower = s.to_ascii_lowercase();
        for word in ["password", "passwd", "secret", "token", "chap"] {
            if lower.contains(word) {
                return Err(format!(
                    "contains {word:?}: everybody on the node can read kernel arguments; put \
                     secrets into the image's own configuration"
                ));
            }
        }
        Ok(Self(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLES: &str = include_str!("../../../images/examples/blueprints.toml");

    #[test]
    fn the_examples_read() {
        let blueprints = parse_blueprints(EXAMPLES).expect("valid");
        let names: Vec<_> = blueprints.iter().map(|b| b.name.as_str()).collect();
        assert_eq!(names, ["load-balancer", "web-server"]);
        assert_eq!(blueprints[1].data.len(), 1);
        assert_eq!(blueprints[1].root, Root { persistent: false, size_mib: 512 });
    }

    #[test]
    fn faults_are_found_where_they_are() {
        for (from, to, key) in [
            ("boot = \"iscsi\"", "boot = \"usb\"", "blueprint[0].boot"),
            ("boot = \"iscsi\"", "boot = \"ram\"", "blueprint[0].root"),
            ("\"ephemeral\"", "\"eternal\"", "blueprint[0].root.kind"),
            ("port = 8404", "port = 0", "blueprint[0].health.port"),
            ("kind = \"tcp\"", "kind = \"icmp\"", "blueprint[0].health.kind"),
            ("\"/health\"", "\"health\"", "blueprint[1].health.path"),
            ("\"/health\"", "\"/health;full\"", "blueprint[1].health.path"),
            ("interval_ms = 1000", "interval_ms = 99", "blueprint[0].health.interval_ms"),
            ("timeout_ms = 900", "timeout_ms = 60001", "blueprint[0].health.timeout_ms"),
            ("[\"shop-content\"]", "[\"Shop\"]", "blueprint[1].data[0]"),
            ("[\"shop-content\"]", "[\"a\", \"a\"]", "blueprint[1].data: names"),
            (
                "[\"shop-content\"]",
                "[\"shop-content\", { name = \"pg\", kind = \"exclusive\" }]",
                "blueprint[1].data[1].size_mib: is missing",
            ),
            (
                "[\"shop-content\"]",
                "[{ name = \"pg\", kind = \"shared\", size_mib = 64, zone = \"x\" }]",
                "blueprint[1].data[0].zone: is not a key here",
            ),
            ("image = \"web-server\"", "image = \"web-server@1\"", "blueprint[1].image"),
            ("name = \"web-server\"", "name = \"load-balancer\"", "blueprint[1].name"),
            ("role = \"web-server\"", "rôle = 1\nrole = \"web-server\"", ""),
            (
                "boot = \"iscsi\"",
                "boot = \"iscsi\"\nkernel_args = \"quiet; reboot\"",
                "blueprint[0].kernel_args",
            ),
            (
                "boot = \"iscsi\"",
                "boot = \"iscsi\"\nkernel_args = \"rd.password=x\"",
                "blueprint[0].kernel_args",
            ),
        ] {
            let text = EXAMPLES.replacen(from, to, 1);
            assert_ne!(text, EXAMPLES, "{from} is not in the examples");
            let found = parse_blueprints(&text).expect_err("accepted").to_string();
            assert!(found.contains(key), "{key} is not in:\n{found}");
        }
        assert!(parse_blueprints("").is_err());
    }

    proptest! {
        /// A check that control accepts is one that bootd and the agent accept.
        #[test]
        fn a_check_that_reads_can_be_run(
            path in "/?[ -~]{0,12}", interval in 0u32..700_000, timeout in 0u32..70_000,
        ) {
            let text = EXAMPLES
                .replace("\"/health\"", &format!("'{path}'"))
                .replace("interval_ms = 1000", &format!("interval_ms = {interval}"))
                .replace("timeout_ms = 900", &format!("timeout_ms = {timeout}"));
            for blueprint in parse_blueprints(&text).unwrap_or_default() {
                let check = croft_proto::common::HealthCheck::from(&blueprint.health);
                let target = HealthTarget::try_from(&check);
                prop_assert!(matches!(target, Ok(HealthTarget::Tcp(_) | HealthTarget::Http(..))));
            }
        }

        #[test]
        fn an_image_reference_reads_back(name in "[a-z]{1,8}", version in prop::option::of("[0-9a-f]{64}")) {
            let text = version.map_or(name.clone(), |version| format!("{name}@{version}"));
            let image: ImageRef = text.parse().expect("valid");
            prop_assert_eq!(image.to_string(), text);
        }
    }
}
