//! `croft grid`

use croft_proto::api::{GetGridRequest, Grid as GridAnswer};

use super::{changes, document};
use crate::args::{Grid, Output};
use crate::client::{Control, call};
use crate::fault::Fault;
use crate::print::print;
use crate::table::{Table, fields};

pub async fn run(control: &mut Control, command: Grid, output: Output) -> Result<(), Fault> {
    match command {
        Grid::Apply { file } => {
            let outcome = control.api.apply_grid(call(document(&file)?)).await;
            let reply = control.answer(outcome).map_err(|fault| fault.of_file(&file))?;
            print(output, &reply, changes)
        }
        Grid::Show => {
            let outcome = control.api.get_grid(call(GetGridRequest {})).await;
            print(output, &control.answer(outcome)?, render)
        }
    }
}

fn render(grid: &GridAnswer) -> String {
    let mut text = fields(&[
        ("name", grid.name.clone()),
        ("nodes", format!("{} ({} idle)", grid.nodes, grid.idle_nodes)),
        ("idle", format!("VLAN {}, {}", grid.idle_vlan, grid.idle_subnet)),
        (
            "farms",
            format!("VLAN {}-{}, {}", grid.farm_vlan_first, grid.farm_vlan_last, grid.farm_subnets),
        ),
        ("external", grid.external_subnet.clone()),
        ("dead", format!("VLAN {}", grid.dead_vlan)),
    ]);
    if !grid.switches.is_empty() {
        let mut switches = Table::new(&["SWITCH", "DRIVER", "ADDRESS"]);
        for switch in &grid.switches {
            switches.row([switch.name.clone(), switch.driver.clone(), switch.address.clone()]);
        }
        text.push('\n');
        text.push_str(&switches.render());
    }
    text
}
