//! `croft farm`

use std::time::{Duration, Instant};

use croft_proto::api::{Farm as FarmAnswer, GetFarmRequest, ListFarmsReply, ListFarmsRequest};
use tonic::Code;

use super::{changes, document};
use crate::args::{Farm, Output};
use crate::client::{Control, call};
use crate::fault::Fault;
use crate::print::print;
use crate::table::{Table, fields};
use crate::text::{share, short_version, size};

/// Between two looks at a farm that is being deleted.
const LOOK: Duration = Duration::from_millis(500);

pub async fn run(control: &mut Control, command: Farm, output: Output) -> Result<(), Fault> {
    match command {
        Farm::Apply { file } => {
            let outcome = control.api.apply_farm(call(document(&file)?)).await;
            let reply = control.answer(outcome).map_err(|fault| fault.of_file(&file))?;
            print(output, &reply, changes)
        }
        Farm::Show { name } => {
            let outcome = control.api.get_farm(call(GetFarmRequest { name })).await;
            print(output, &control.answer(outcome)?, show)
        }
        Farm::Ls => {
            let outcome = control.api.list_farms(call(ListFarmsRequest {})).await;
            print(output, &control.answer(outcome)?, list)
        }
        Farm::Delete { name, wait, timeout } => {
            let request = GetFarmRequest { name: name.clone() };
            let outcome = control.api.delete_farm(call(request)).await;
            let reply = control.answer(outcome)?;
            if wait {
                until_gone(control, name, Duration::from_secs(timeout)).await?;
            }
            print(output, &reply, changes)
        }
    }
}

/// Waits until control does not know the farm any more.
async fn until_gone(control: &mut Control, name: String, limit: Duration) -> Result<(), Fault> {
    let started = Instant::now();
    loop {
        let request = GetFarmRequest { name: name.clone() };
        match control.api.get_farm(call(request)).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => return Ok(()),
            // Control may be restarted meanwhile; the deletion survives that.
            Err(status) => {
                let fault = control.fault(status);
                if !fault.is_passing() {
                    return Err(fault);
                }
            }
        }
        if started.elapsed() >= limit {
            return Err(Fault::Late { what: format!("the deletion of {name}"), after: limit });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn list(reply: &ListFarmsReply) -> String {
    let mut table =
        Table::new(&["NAME", "ORGANIZATION", "STATE", ">VLAN", "SUBNET", ">MEMBERS", "EXPOSED"]);
    for farm in &reply.farms {
        let serving: u32 = farm.tiers.iter().map(|tier| tier.in_service).sum();
        let desired: u32 = farm.tiers.iter().map(|tier| tier.desired).sum();
        table.row([
            farm.name.clone(),
            farm.organization.clone(),
            farm.state.clone(),
            farm.vlan.to_string(),
            farm.subnet.clone(),
            format!("{serving}/{desired}"),
            farm.exposed.join(" "),
        ]);
    }
    table.render()
}

fn show(farm: &FarmAnswer) -> String {
    let mut text = fields(&[
        ("name", farm.name.clone()),
        ("organization", farm.organization.clone()),
        ("state", farm.state.clone()),
        ("segment", format!("VLAN {}, {}", farm.vlan, farm.subnet)),
        ("exposed", farm.exposed.join(" ")),
    ]);
    let mut tiers = Table::new(&[
        "TIER",
        "BLUEPRINT",
        ">MIN",
        ">MAX",
        ">DESIRED",
        ">SERVING",
        ">LOAD",
        ">TARGET",
    ]);
    let mut members = Table::new(&["MEMBER", "STATE", "NODE", "ADDRESS", "IMAGE"]);
    for tier in &farm.tiers {
        tiers.row([
            tier.name.clone(),
            tier.blueprint.clone(),
            tier.min.to_string(),
            tier.max.to_string(),
            tier.desired.to_string(),
            tier.in_service.to_string(),
            share(tier.load),
            // A tier that does not scale has no target.
            if tier.target > 0.0 { share(tier.target) } else { String::new() },
        ]);
        for member in &tier.members {
            members.row([
                member.name.clone(),
                member.state.clone(),
                member.node.clone(),
                member.address.clone(),
                short_version(&member.image),
            ]);
        }
    }
    let mut tables = vec![tiers, members];
    if !farm.volumes.is_empty() {
        let mut volumes = Table::new(&["VOLUME", "NAME", "MEMBER", ">SIZE"]);
        for volume in &farm.volumes {
            volumes.row([
                volume.id.clone(),
                volume.name.clone(),
                volume.member.clone(),
                size(volume.size_mib.saturating_mul(1 << 20)),
            ]);
        }
        tables.push(volumes);
    }
    for table in tables {
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}

#[cfg(test)]
mod tests {
    use croft_proto::api::{FarmVolume, Member, Tier};

    use super::*;

    fn shop() -> FarmAnswer {
        let member = Member {
            name: "shop/web/1".to_owned(),
            node: "n3".to_owned(),
            address: "10.20.0.11".to_owned(),
            state: "InService".to_owned(),
            image: "cd".repeat(32),
        };
        FarmAnswer {
            name: "shop".to_owned(),
            organization: "acme".to_owned(),
            state: "ready".to_owned(),
            vlan: 100,
            subnet: "10.20.0.0/24".to_owned(),
            tiers: vec![Tier {
                name: "web".to_owned(),
                blueprint: "web-server".to_owned(),
                role: "web-server".to_owned(),
                min: 2,
                max: 4,
                desired: 2,
                in_service: 1,
                load: 0.37,
                target: 0.4,
                members: vec![member],
            }],
            exposed: vec!["203.0.113.10:80".to_owned()],
            volumes: Vec::new(),
        }
    }

    #[test]
    fn a_farm_shows_tiers_and_members() {
        let expected = "\
name          shop
organization  acme
state         ready
segment       VLAN 100, 10.20.0.0/24
exposed       203.0.113.10:80

TIER  BLUEPRINT   MIN  MAX  DESIRED  SERVING  LOAD  TARGET
web   web-server    2    4        2        1   37%     40%

MEMBER      STATE      NODE  ADDRESS     IMAGE
shop/web/1  InService  n3    10.20.0.11  cdcdcdcdcdcd
";
        assert_eq!(show(&shop()), expected);
    }

    #[test]
    fn a_farm_shows_its_data_volumes() {
        let volume = |id: &str, member: &str| FarmVolume {
            id: id.to_owned(),
            name: "pg".to_owned(),
            member: member.to_owned(),
            size_mib: 64,
        };
        let volumes = vec![volume("own-shop-web-1-pg", "shop/web/1"), volume("shared-shop-pg", "")];
        let text = show(&FarmAnswer { volumes, ..shop() });
        let expected = "
VOLUME             NAME  MEMBER          SIZE
own-shop-web-1-pg  pg    shop/web/1  64.0 MiB
shared-shop-pg     pg    -           64.0 MiB
";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn the_list_counts_serving_and_desired_members() {
        let expected = "\
NAME  ORGANIZATION  STATE  VLAN  SUBNET        MEMBERS  EXPOSED
shop  acme          ready   100  10.20.0.0/24      1/2  203.0.113.10:80
";
        assert_eq!(list(&ListFarmsReply { farms: vec![shop()] }), expected);
    }
}
