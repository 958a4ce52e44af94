//! What control does with volumes, through the door of the real program.

use croft_proto::edge;
use nix::sys::signal::Signal;
use tonic::Code;

use crate::site::Site;
use crate::{on_a_site, settle};

fn at(volume: &str, snapshot: &str) -> edge::SnapshotRequest {
    edge::SnapshotRequest { volume: volume.to_owned(), snapshot: snapshot.to_owned() }
}

async fn volume(site: &Site, id: &str) -> Option<edge::StoredVolume> {
    let list = site.storage().await.list(edge::StorageListRequest {}).await;
    let list = list.expect("listed").into_inner();
    list.volumes.into_iter().find(|volume| volume.id == id)
}

#[test]
fn control_takes_snapshots_and_clones_which_outlive_bootd() {
    let test = "storage::control_takes_snapshots_and_clones_which_outlive_bootd";
    on_a_site(test, async |site| {
        let root = "shop-web-1";
        let clone = edge::CloneRequest {
            volume: root.to_owned(),
            snapshot: "golden".to_owned(),
            id: "copy".to_owned(),
            farm: "shop".to_owned(),
        };
        let mut storage = site.storage().await;
        storage.snapshot(at(root, "golden")).await.expect("a snapshot");
        let again = storage.snapshot(at(root, "golden")).await.expect_err("it has one");
        assert_eq!(again.code(), Code::AlreadyExists);
        let none = storage.rollback(at(root, "silver")).await.expect_err("it has none");
        assert_eq!(none.code(), Code::NotFound);
        let bad = storage.snapshot(at(root, "Silver!")).await.expect_err("no name");
        assert_eq!(bad.code(), Code::InvalidArgument);
        // A member whose volume has this name would find the clone in its place.
        for id in ["root-shop-web-2", "own-shop-web-1-log", "shared-shop-fs", "data-shop-1234"] {
            let taken = edge::CloneRequest { id: id.to_owned(), ..clone.clone() };
            let refused = storage.clone_snapshot(taken).await.expect_err(id);
            assert_eq!(refused.code(), Code::InvalidArgument, "{id}: {refused}");
            assert!(volume(site, id).await.is_none(), "{id} was made");
        }
        storage.clone_snapshot(clone).await.expect("a clone");
        let size_bytes = 8 << 20;
        let grow = edge::GrowRequest { volume: "copy".to_owned(), size_bytes };
        storage.grow(grow).await.expect("longer");
        let small = edge::GrowRequest { volume: "copy".to_owned(), size_bytes: 4096 };
        assert_eq!(storage.grow(small).await.expect_err("no").code(), Code::InvalidArgument);
        storage.rollback(at(root, "golden")).await.expect("nobody has it");
        let twice = vec![edge::FarmPolicy { farm: "shop".to_owned(), ..Default::default() }; 2];
        let policy = edge::StoragePolicy { farms: twice, volumes: Vec::new() };
        let fault = storage.set_policy(policy).await.expect_err("listed twice");
        assert_eq!(fault.code(), Code::InvalidArgument);
        let farm =
            edge::FarmPolicy { farm: "shop".to_owned(), most_bytes: 1 << 30, ..Default::default() };
        let policy = edge::StoragePolicy { farms: vec![farm], volumes: Vec::new() };
        storage.set_policy(policy).await.expect("taken");
        site.end(Signal::SIGKILL);
        site.start();
        settle(site).await;
        let copy = volume(site, "copy").await.expect("the clone is still there");
        assert!(copy.clone && copy.size_bytes == 8 << 20 && copy.farm == "shop");
        let snapshots = volume(site, root).await.expect("the root volume").snapshots;
        assert_eq!(snapshots[0].name, "golden");
        let mut storage = site.storage().await;
        let request = |id: &str| edge::VolumeRequest { volume: id.to_owned() };
        let wanted = storage.delete_clone(request(root)).await.expect_err("it is no clone");
        assert_eq!(wanted.code(), Code::FailedPrecondition);
        storage.delete_snapshot(at(root, "golden")).await.expect("forgotten");
        storage.delete_clone(request("copy")).await.expect("deleted");
        storage.delete_clone(request("copy")).await.expect("gone already");
        assert_eq!(volume(site, "copy").await, None);
    });
}
