//! `croft blueprint` and `croft image`: what farms are made of.

use croft_proto::api::{
    ListBlueprintsReply, ListBlueprintsRequest, ListImagesReply, ListImagesRequest,
};

use super::{changes, document};
use crate::args::{Blueprint, Image, Output};
use crate::client::{Control, call};
use crate::fault::Fault;
use crate::print::print;
use crate::table::Table;
use crate::text::{short_version, size};

pub async fn blueprint(
    control: &mut Control,
    command: Blueprint,
    output: Output,
) -> Result<(), Fault> {
    match command {
        Blueprint::Apply { file } => {
            let outcome = control.api.apply_blueprints(call(document(&file)?)).await;
            let reply = control.answer(outcome).map_err(|fault| fault.of_file(&file))?;
            print(output, &reply, changes)
        }
        Blueprint::Ls => {
            let outcome = control.api.list_blueprints(call(ListBlueprintsRequest {})).await;
            print(output, &control.answer(outcome)?, blueprints)
        }
    }
}

pub async fn image(control: &mut Control, command: Image, output: Output) -> Result<(), Fault> {
    match command {
        Image::Ls => {
            let outcome = control.api.list_images(call(ListImagesRequest {})).await;
            print(output, &control.answer(outcome)?, images)
        }
    }
}

fn blueprints(reply: &ListBlueprintsReply) -> String {
    let mut table = Table::new(&["NAME", "ROLE", "IMAGE", "BOOT", "DATA", "HEALTH"]);
    for blueprint in &reply.blueprints {
        table.row([
            blueprint.name.clone(),
            blueprint.role.clone(),
            blueprint.image.clone(),
            blueprint.boot.clone(),
            blueprint.data_images.join(" "),
            blueprint.health.clone(),
        ]);
    }
    table.render()
}

fn images(reply: &ListImagesReply) -> String {
    let mut table = Table::new(&["NAME", "VERSION", "KIND", ">SIZE", "CURRENT"]);
    for image in &reply.images {
        table.row([
            image.name.clone(),
            short_version(&image.version),
            image.kind.clone(),
            size(image.size_bytes),
            if image.current { "yes".to_owned() } else { String::new() },
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use croft_proto::api::{Blueprint, Image};

    use super::*;

    #[test]
    fn images_and_blueprints_have_a_line_each() {
        let image = Image {
            name: "web-server".to_owned(),
            version: "ef".repeat(32),
            kind: "system".to_owned(),
            size_bytes: 300 << 20,
            current: true,
        };
        assert_eq!(
            images(&ListImagesReply { images: vec![image] }),
            "NAME        VERSION       KIND         SIZE  CURRENT\n\
             web-server  efefefefefef  system  300.0 MiB  yes\n"
        );
        let blueprint = Blueprint {
            name: "web-server".to_owned(),
            role: "web-server".to_owned(),
            image: "web-server".to_owned(),
            boot: "iscsi".to_owned(),
            data_images: vec!["shop-content".to_owned()],
            health: "http 80 /health".to_owned(),
        };
        assert_eq!(
            blueprints(&ListBlueprintsReply { blueprints: vec![blueprint] }),
            "NAME        ROLE        IMAGE       BOOT   DATA          HEALTH\n\
             web-server  web-server  web-server  iscsi  shop-content  http 80 /health\n"
        );
    }
}
