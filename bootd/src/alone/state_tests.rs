use super::*;
use crate::alone::plan::tests::plan;
use crate::desired::check_with;

fn want(host: u8, role: &str) -> Want {
    let mac: MacAddr = format!("52:54:00:00:00:{host:02x}").parse().expect("MAC");
    Want {
        node: crate::alone::plan::name_of(mac),
        macs: vec![mac],
        uuid: None,
        segment: "lan".parse().expect("name"),
        address: [192, 168, 1, host].into(),
        role: role.parse().expect("role"),
    }
}

fn versions(image: &[u8]) -> Versions {
    let data = vec![Data::Image(ImageVersion::of(b"content"))];
    Versions { image: Some(ImageVersion::of(image)), data }
}

fn volume(name: &str, kind: DataKind, size_mib: u64) -> Data<ImageVersion> {
    Data::Volume(DataVolume { name: name.parse().expect("name"), kind, size_mib })
}

fn nothing(plan: &Plan) -> edge::DesiredState {
    let mut state = fit(plan, edge::DesiredState::default());
    state.generation = Some(croft_proto::Generation { epoch: 0, counter: 1 }.into());
    state
}

#[test]
fn what_is_assigned_is_a_good_desired_state() {
    let plan = plan();
    let mut state = nothing(&plan);
    assert!(assign(&plan, &mut state, &want(101, "web"), &versions(b"1"), 1).expect("assigned"));
    assert!(assign(&plan, &mut state, &want(102, "db"), &versions(b"1"), 1).expect("assigned"));
    assert!(assign(&plan, &mut state, &want(103, "web"), &versions(b"1"), 1).expect("assigned"));
    let desired = check_with(&state, &legs(&plan)).expect("good");
    let hosts: Vec<_> = desired.assignments.values().map(|a| a.host_name.as_str()).collect();
    assert_eq!(hosts, ["web-1", "db-1", "web-2"]);
    assert_eq!(desired.volumes.len(), 4, "three roots and one content");
    // The same again changes nothing, also with another number at hand.
    assert!(!assign(&plan, &mut state, &want(101, "web"), &versions(b"1"), 7).expect("the same"));
    assert_eq!(state.assignments[0].window, 1);
    // A newer image is another boot.
    assert!(assign(&plan, &mut state, &want(101, "web"), &versions(b"2"), 7).expect("assigned"));
    let one = state.assignments.iter().find(|a| a.node == want(101, "web").node.as_str());
    let one = one.expect("there");
    assert_eq!((one.window, one.ordinal), (7, 1));
    check_with(&state, &legs(&plan)).expect("good");
}

#[test]
fn who_takes_an_address_or_a_nic_takes_its_place() {
    let plan = plan();
    let mut state = nothing(&plan);
    assign(&plan, &mut state, &want(101, "web"), &versions(b"1"), 1).expect("assigned");
    let moved = Want { address: [192, 168, 1, 101].into(), ..want(102, "web") };
    assign(&plan, &mut state, &moved, &versions(b"1"), 1).expect("assigned");
    assert_eq!(state.assignments.len(), 1);
    let named = Want { node: "kitchen".parse().expect("name"), ..want(102, "web") };
    assign(&plan, &mut state, &named, &versions(b"1"), 1).expect("assigned");
    let desired = check_with(&state, &legs(&plan)).expect("good");
    assert_eq!(desired.assignments.keys().map(|n| n.as_str()).collect::<Vec<_>>(), ["kitchen"]);
    assert_eq!(desired.nodes.len(), 1);
    let gone = Want { role: "gone".parse().expect("role"), ..named };
    let refused = assign(&plan, &mut state, &gone, &versions(b"1"), 1);
    assert_eq!(refused, Err(Impossible::NoBlueprint));
}

#[test]
fn persistent_volumes_outlive_every_edit_and_pin_their_image() {
    let plan = plan();
    let mut state = nothing(&plan);
    let db = want(102, "db");
    assign(&plan, &mut state, &db, &versions(b"1"), 1).expect("assigned");
    assert_eq!(pinned(&state, &db), Some(ImageVersion::of(b"1")));
    assert!(withdraw(&mut state, &db.node));
    assert!(!withdraw(&mut state, &db.node));
    assert!(state.assignments.is_empty() && state.nodes.is_empty());
    assert_eq!(pinned(&state, &db), Some(ImageVersion::of(b"1")));
    assert_eq!(pinned(&state, &want(101, "web")), None);
    let again = fit(&plan, state);
    assert_eq!(again.volumes.len(), 1);
}

#[test]
fn an_earlier_state_is_kept_as_far_as_the_file_still_has_its_place() {
    let plan = plan();
    let mut state = nothing(&plan);
    assign(&plan, &mut state, &want(101, "web"), &versions(b"1"), 1).expect("assigned");
    assign(&plan, &mut state, &want(103, "web"), &versions(b"1"), 1).expect("assigned");
    state.assignments[1].address = "10.99.0.1".to_owned();
    let fitted = fit(&plan, state);
    assert_eq!(fitted.assignments.len(), 1);
    assert_eq!(fitted.nodes.len(), 1);
    check_with(&fitted, &legs(&plan)).expect("good");
}

#[test]
fn a_root_that_becomes_ephemeral_leaves_the_persistent_one_alone() {
    let mut plan = plan();
    let mut state = nothing(&plan);
    let db = want(102, "db");
    assign(&plan, &mut state, &db, &versions(b"1"), 1).expect("assigned");
    let kept = state.assignments[0].root_volume.clone();
    let role: RoleName = "db".parse().expect("role");
    let root = |plan: &mut Plan, persistent| {
        let blueprint = plan.blueprints.get_mut(&role).expect("there");
        blueprint.root = Some(super::super::plan::Root { persistent, size_mib: 0 });
    };
    root(&mut plan, false);
    assign(&plan, &mut state, &db, &versions(b"2"), 2).expect("assigned");
    let ephemeral = state.assignments[0].root_volume.clone();
    assert_ne!(ephemeral, kept);
    let volume = |state: &edge::DesiredState, id: &str| {
        state.volumes.iter().find(|v| v.id == id).map(|v| (v.persistent, v.image.clone()))
    };
    let first = ImageVersion::of(b"1").to_string();
    assert_eq!(volume(&state, &kept), Some((true, first.clone())));
    assert_eq!(volume(&state, &ephemeral).map(|v| v.0), Some(false));
    // And it is there when the blueprint changes back.
    root(&mut plan, true);
    assert_eq!(pinned(&state, &db), Some(ImageVersion::of(b"1")));
    let image = pinned(&state, &db);
    assign(&plan, &mut state, &db, &Versions { image, data: Vec::new() }, 3).expect("assigned");
    assert_eq!(state.assignments[0].root_volume, kept);
    assert_eq!(volume(&state, &kept), Some((true, first)));
    assert_eq!(volume(&state, &ephemeral), None);

    // Names that run into each other: the data wins.
    let mut state = nothing(&plan);
    let long = Want { node: "n-web".parse().expect("name"), ..want(103, "db") };
    assign(&plan, &mut state, &long, &versions(b"1"), 1).expect("assigned");
    state.volumes.iter_mut().find(|v| v.persistent).expect("a root").id =
        root_id(&want(104, "web"), false);
    let refused = assign(&plan, &mut state, &want(104, "web"), &versions(b"1"), 1);
    assert_eq!(refused, Err(Impossible::Kept));
}

#[test]
fn the_state_of_another_site_is_not_taken_for_this_ones() {
    let plan = plan();
    let mut state = nothing(&plan);
    assert_eq!(foreign(&plan, &edge::DesiredState::default()), None);
    assign(&plan, &mut state, &want(102, "db"), &versions(b"1"), 1).expect("assigned");
    assert_eq!(foreign(&plan, &state), None);
    let mut moved = plan;
    moved.site = "office".parse().expect("name");
    assert_eq!(foreign(&moved, &state).as_deref(), Some("site home"));
    let controlled = crate::test_support::state();
    assert_eq!(foreign(&moved, &controlled).as_deref(), Some("a bootd under control"));
    // No edit of a file drops a persistent volume.
    assert_eq!(fit(&moved, state).volumes.iter().filter(|v| v.persistent).count(), 1);
}

#[test]
fn data_volumes_belong_to_a_machine_in_a_role_or_to_the_site() {
    let plan = plan();
    let mut state = nothing(&plan);
    let (own, shared) = (DataKind::Exclusive, DataKind::Shared);
    let mut with = versions(b"1");
    with.data.extend([volume("pg", own, 64), volume("fs", shared, 32)]);
    for host in [101, 102] {
        assign(&plan, &mut state, &want(host, "web"), &with, 1).expect("assigned");
    }
    let named = |state: &edge::DesiredState, i: usize| state.assignments[i].data_volumes.clone();
    let content = format!("data-{}", ImageVersion::of(b"content"));
    let first = "own-m--525400000065-web-pg";
    assert_eq!(named(&state, 0), [content.as_str(), first, "shared-fs"]);
    assert_ne!(named(&state, 1)[1], first);
    check_with(&state, &legs(&plan)).expect("good");
    // No edit and no machine that goes costs anybody's data; nothing shrinks.
    let size = |state: &edge::DesiredState, id: &str| {
        state.volumes.iter().find(|v| v.id == id).map(|v| v.size_bytes >> 20)
    };
    let mut other = versions(b"1");
    other.data.push(volume("fs", shared, 16));
    assign(&plan, &mut state, &want(101, "web"), &other, 2).expect("assigned");
    assert!(withdraw(&mut state, &want(102, "web").node));
    assert_eq!((size(&state, first), size(&state, "shared-fs")), (Some(64), Some(32)));
    other.data = vec![volume("pg", own, 128)];
    assign(&plan, &mut state, &want(101, "web"), &other, 3).expect("assigned");
    assert_eq!(size(&state, first), Some(128));
    // A size alone is no reason for another boot window.
    other.data = vec![volume("pg", own, 256)];
    assert!(assign(&plan, &mut state, &want(101, "web"), &other, 9).expect("assigned"));
    assert!(!assign(&plan, &mut state, &want(101, "web"), &other, 9).expect("the same"));
    assert_eq!((size(&state, first), state.assignments[0].window), (Some(256), 3));
    check_with(&state, &legs(&plan)).expect("good");

    // A persistent root that has the name of a shared volume: whoever was first stays.
    let named = Want { node: "shared".parse().expect("name"), ..want(103, "db") };
    other.data = vec![volume("db", shared, 1)];
    assign(&plan, &mut state, &want(101, "web"), &other, 4).expect("assigned");
    let refused = assign(&plan, &mut state, &named, &versions(b"1"), 1);
    assert_eq!(refused, Err(Impossible::Kept));
}
