//! `croft blueprint` and `croft image`: what farms are made of.

use croft_proto::api::{
    Blueprint as BlueprintAnswer, ListBlueprintsReply, ListBlueprintsRequest, ListImagesReply,
    ListImagesRequest,
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
            data(blueprint),
            blueprint.health.clone(),
        ]);
    }
    table.render()
}

/// Data images and volumes.
fn data(blueprint: &BlueprintAnswer) -> String {
    let volumes = blueprint.data_volumes.iter().map(|volume| {
        let size = size(volume.size_mib.saturating_mul(1 << 20));
        format!("{} ({}, {size})", volume.name, volume.kind)
    });
    blueprint.data_images.iter().cloned().chain(volumes).collect::<Vec<_>>().join(" ")
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
    use croft_proto::api::{Blueprint, DataVolume, Image};

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
            data_volumes: vec![DataVolume {
                name: "pg".to_owned(),
                kind: "exclusive".to_owned(),
                size_mib: 64,
            }],
        };
        assert_eq!(
            blueprints(&ListBlueprintsReply { blueprints: vec![blueprint] }),
            "NAME        ROLE        IMAGE       BOOT   \
             DATA                                   HEALTH\n\
             web-server  web-server  web-server  iscsi  \
             shop-content pg (exclusive, 64.0 MiB)  http 80 /health\n"
        );
    }
}
