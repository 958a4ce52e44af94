//! A small desired state for tests: `n1` serves `shop/web/1` on segment `shop`, `n2` the balancer,
//! `n3` is idle.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use croft_proto::{
    BlobHash, CHUNK_SIZE, Generation, ImageFile, ImageKind, ImageVersion, Iqn, Manifest, NodeName,
    Secret, common, edge,
};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::boot::{DeskParts, Presence, Records};
use crate::desired::{Desired, Holder, check};
use crate::events::Events;
use crate::volume::ImageStore;
use crate::zone::Grant;

/// For fuzz targets, which begin anew too often to make one each time.
pub(crate) static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("runtime")
});

/// What a desk under control works with that keeps its things in a directory; nothing is desired yet.
pub(crate) fn desk_parts(dir: &Path, events: Events) -> DeskParts {
    DeskParts {
        desired: Arc::new(Holder::open(dir).expect("holder")),
        records: Arc::new(Records::open(dir).expect("records")),
        presence: Arc::new(Presence::new()),
        events,
        images: Arc::new(ImageStore::open(dir.join("images"))),
        alone: false,
        certificate: "PEM".to_owned(),
        nudge: Arc::new(Notify::new()),
    }
}

/// A grant of `shop/web/1` to a node, with no units.
pub(crate) fn grant(node: &str, window: u64) -> Grant {
    let node: NodeName = node.parse().expect("valid");
    Grant {
        initiator: Iqn::initiator(&node),
        target: Iqn::target(&"shop/web/1".parse().expect("valid")),
        node,
        window,
        farm: "shop".parse().expect("valid"),
        segment: "seg100".parse().expect("valid"),
        address: [10, 20, 0, 11].into(),
        secret: Secret::new("0123456789abcdef".to_owned()),
        target_secret: None,
        redirect: None,
        units: Vec::new(),
    }
}

/// What control would send.
pub(crate) fn state() -> edge::DesiredState {
    let node = |i: u8| edge::Node {
        name: format!("n{i}"),
        hardware_class: "small".to_owned(),
        uuid: format!("0102030{i}-0405-0607-0809-0a0b0c0d0e0f"),
        macs: vec![format!("52:54:00:00:0{i}:00"), format!("52:54:00:00:0{i}:01")],
        circuit_id: Vec::new(),
    };
    let volume = |id: &str, kind: edge::volume::Kind| edge::Volume {
        id: id.to_owned(),
        kind: kind.into(),
        image: ImageVersion::of(id.as_bytes()).to_string(),
        size_bytes: 0,
        persistent: false,
        zone: "shop".to_owned(),
    };
    let assignment = |node: &str, tier: &str, host: u8| edge::Assignment {
        node: node.to_owned(),
        segment: "shop".to_owned(),
        address: format!("10.20.1.{host}"),
        window: 3,
        organization: "acme".to_owned(),
        farm: "shop".to_owned(),
        tier: tier.to_owned(),
        ordinal: 1,
        role: "web-server".to_owned(),
        host_name: format!("shop-{tier}-1"),
        method: edge::BootMethod::Iscsi.into(),
        image: ImageVersion::of(b"web").to_string(),
        kernel_args: "quiet".to_owned(),
        root_volume: format!("shop-{tier}-1-root"),
        data_volumes: vec!["shop-content".to_owned()],
        health: Some(common::HealthCheck {
            kind: common::health_check::Kind::Http.into(),
            port: 80,
            path: "/health".to_owned(),
            interval_ms: 1000,
            timeout_ms: 900,
        }),
        phase: common::Phase::Run.into(),
        nic1_address: String::new(),
        nic1_gateway: String::new(),
    };
    edge::DesiredState {
        generation: Some(Generation { epoch: 1, counter: 1 }.into()),
        segments: vec![
            edge::Segment {
                name: "idle".to_owned(),
                vlan: 10,
                device: "seg10".to_owned(),
                address: "10.10.0.1/24".to_owned(),
                kind: edge::segment::Kind::Idle.into(),
                farm: String::new(),
            },
            edge::Segment {
                name: "shop".to_owned(),
                vlan: 100,
                device: "seg100".to_owned(),
                address: "10.20.1.1/24".to_owned(),
                kind: edge::segment::Kind::Farm.into(),
                farm: "shop".to_owned(),
            },
        ],
        nodes: (1..=3).map(node).collect(),
        volumes: vec![
            volume("shop-web-1-root", edge::volume::Kind::Root),
            volume("shop-lb-1-root", edge::volume::Kind::Root),
            volume("shop-content", edge::volume::Kind::SharedReadOnly),
        ],
        assignments: vec![assignment("n1", "web", 10), assignment("n2", "lb", 11)],
        farms: vec![common::Membership {
            farm: "shop".to_owned(),
            version: 1,
            members: vec![common::Member {
                name: "shop/web/1".to_owned(),
                tier: "web".to_owned(),
                role: "web-server".to_owned(),
                address: "10.20.1.10".to_owned(),
                state: common::member::State::Joining.into(),
            }],
            balances: Vec::new(),
        }],
    }
}

/// Gives each member an exclusive volume of 1 MiB, and both of them a shared one of 2 MiB.
pub(crate) fn add_data_volumes(state: &mut edge::DesiredState) {
    let volume = |id: String, kind: edge::volume::Kind, mib: u64| edge::Volume {
        id,
        kind: kind.into(),
        image: String::new(),
        size_bytes: mib << 20,
        persistent: true,
        zone: "shop".to_owned(),
    };
    for assignment in &mut state.assignments {
        let own = format!("shop-{}-1-data", assignment.tier);
        assignment.data_volumes.extend([own.clone(), "shop-cluster".to_owned()]);
        state.volumes.push(volume(own, edge::volume::Kind::Exclusive, 1));
    }
    state.volumes.push(volume("shop-cluster".to_owned(), edge::volume::Kind::SharedReadWrite, 2));
}

/// Puts a data image with this content into an image store, and returns its version.
pub(crate) fn data_image(store: &Path, content: &[u8]) -> ImageVersion {
    let blob = BlobHash::of(content);
    let chunks = content.chunks(CHUNK_SIZE as usize).map(BlobHash::of).collect();
    let disk = ImageFile { size: content.len() as u64, blob, chunks };
    let manifest = Manifest {
        format: 1,
        name: "content".parse().expect("a valid name"),
        kind: ImageKind::Data,
        files: [("disk".to_owned(), disk)].into(),
        kernel_args: String::new(),
    };
    let version = manifest.version();
    for part in ["blobs", "manifests", "names"] {
        std::fs::create_dir_all(store.join(part)).expect("made");
    }
    let write = |path: String, bytes: &[u8]| std::fs::write(store.join(path), bytes);
    write(format!("blobs/{blob}"), content).expect("written");
    write(format!("manifests/{version}.json"), &manifest.to_bytes()).expect("written");
    write("names/content".to_owned(), format!("{version}\n").as_bytes()).expect("written");
    version
}

/// The same, checked.
pub(crate) fn desired() -> Desired {
    check(&state()).expect("the state of tests has no fault")
}
