//! Organizations side by side: what one may neither break nor learn of another.

use std::path::Path;

use crate::fakes::control::{Control, with_token};
use crate::fakes::farms::start;
use crate::fakes::{PATIENCE, Rack};
use croft_proto::{api, common};
use tonic::Code;

/// A farm of one web server.
fn farm(organization: &str, name: &str, tier: &str) -> String {
    format!(
        "[farm]\nname = '{name}'\norganization = '{organization}'\n\
         [[tier]]\nname = '{tier}'\nblueprint = 'web-server'\nmin = 1\nmax = 1\n"
    )
}

/// Runs the program on a directory; its output, or what it complains of.
fn program(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let (command, rest) = arguments.split_first().expect("a command");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_croft-control"))
        .args([command, "--dir"])
        .arg(dir)
        .args(rest)
        .output()
        .expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// A new tenant's token.
fn tenant(rack: &Rack, organization: &str) -> String {
    let out = rack.path().join(format!("{organization}.toml")).display().to_string();
    let make = ["token", "--role", "tenant", "--organization", organization, "--out", &out];
    program(rack.path(), &make).expect("made");
    let profile = std::fs::read_to_string(out).expect("profile");
    let token = profile.split("token = \"").nth(1).and_then(|rest| rest.split('"').next());
    token.expect("a token").to_owned()
}

/// All stored events that a token may read.
async fn events(control: &Control, token: &str) -> Vec<api::Event> {
    let mut api = control.api().await.expect("connects");
    let request = with_token(api::EventsRequest { after: 0, follow: false }, token);
    let mut stream = api.events(request).await.expect("events").into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.expect("an event") {
        events.push(event);
    }
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farms_past_stays_with_its_organization() {
    let (rack, control) = start(2, |rack| rack.grid("")).await;
    let (acme, globex) = (tenant(&rack, "acme"), tenant(&rack, "globex"));
    let apply = |token: &str, text: &str| {
        let request = api::ApplyTextRequest { text: text.to_owned(), file: "f".to_owned() };
        let request = with_token(request, token);
        let control = &control;
        async move { control.api().await.expect("connects").apply_farm(request).await }
    };
    apply(&acme, &farm("acme", "shop", "web")).await.expect("applied");
    control.ready("shop", 1).await;

    // The name is taken; by whom is nobody's business.
    let taken = apply(&globex, &farm("globex", "shop", "web")).await.expect_err("taken");
    assert_eq!(taken.code(), Code::FailedPrecondition);
    assert!(!taken.message().contains("acme"), "{}", taken.message());
    assert!(events(&control, &globex).await.is_empty());

    control.delete_farm("shop").await.expect("marked");
    control.gone("shop").await;
    let past = events(&control, &acme).await;
    for kind in ["farm-applied", "member-created", "node-state", "farm-deleting", "farm-removed"] {
        assert!(past.iter().any(|event| event.kind == kind), "{kind} is not in {past:#?}");
    }

    apply(&globex, &farm("globex", "shop", "front")).await.expect("applied");
    control.ready("shop", 1).await;
    let new = events(&control, &globex).await;
    assert!(new.iter().any(|event| event.kind == "farm-applied"), "{new:#?}");
    let newest = past.last().expect("some").sequence;
    assert!(new.iter().all(|event| event.sequence > newest), "{new:#?}");
    assert_eq!(events(&control, &acme).await, past);
}

#[tokio::test(flavor = "multi_thread")]
async fn boots_are_shown_to_whoever_sees_the_node() {
    let (rack, control) = start(1, |rack| rack.grid("")).await;
    let (acme, globex) = (tenant(&rack, "acme"), tenant(&rack, "globex"));
    let boots = async |token: &str, name: &str| {
        let request = with_token(api::GetNodeRequest { name: name.to_owned() }, token);
        let reply = control.api().await.expect("connects").get_node_boots(request).await;
        reply.map(tonic::Response::into_inner)
    };
    let operator = control.ask(()).metadata().get("authorization").expect("a token").clone();
    let operator = operator.to_str().expect("text").strip_prefix("Bearer ").expect("a token");
    let none = boots(operator, "n1").await.expect("asked");
    assert_eq!((none.node.as_str(), none.boots.len(), none.remembered_ms), ("n1", 0, 60_000));
    assert_eq!(boots(operator, "n9").await.expect_err("found").code(), Code::NotFound);
    assert_eq!(boots(&acme, "n1").await.expect_err("idle").code(), Code::NotFound);

    control.apply_farm(&farm("acme", "shop", "web")).await.expect("applied");
    control.ready("shop", 1).await;
    let window = rack.state.lock().boots["n1"].window;
    let boot = |window, text: &str| common::Boot {
        window,
        diagnosis: text.to_owned(),
        ..common::Boot::default()
    };
    let seen = vec![boot(window - 1, "another's"), boot(window, "its own")];
    rack.state.lock().traces.insert("n1".to_owned(), seen.clone());
    assert_eq!(boots(operator, "n1").await.expect("asked").boots, seen);
    assert_eq!(boots(&acme, "n1").await.expect("asked").boots, seen[1..]);
    assert_eq!(boots(&globex, "n1").await.expect_err("another's").code(), Code::NotFound);
    assert_eq!(boots("guess.guess", "n1").await.expect_err("who").code(), Code::Unauthenticated);

    // What keeps the boot server from answering is said in words.
    rack.state.lock().edge_old = true;
    let old = boots(operator, "n1").await.expect_err("older");
    assert_eq!(old.code(), Code::FailedPrecondition);
    assert!(old.message().contains("bootd0 is older than control"), "{}", old.message());
    rack.state.lock().edge_dead = true;
    let away = boots(operator, "n1").await.expect_err("away");
    assert_eq!(away.code(), Code::FailedPrecondition);
    assert!(away.message().contains("bootd0 does not answer"), "{}", away.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn farms_whose_names_read_alike_live_side_by_side() {
    let (rack, control) = start(3, |rack| rack.grid("")).await;
    control.apply_farm(&farm("acme", "shop-eu", "web")).await.expect("applied");
    control.apply_farm(&farm("globex", "shop", "eu-web")).await.expect("applied");
    control.ready("shop-eu", 1).await;
    control.ready("shop", 1).await;
    rack.assert_sound();
    let roots: Vec<_> = {
        let state = rack.state.lock();
        let told = state.desired.as_ref().expect("told");
        told.assignments.iter().map(|a| a.root_volume.clone()).collect()
    };
    assert_eq!(roots.len(), 2);
    assert_ne!(roots[0], roots[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_taken_back_is_refused_at_once() {
    let (rack, control) = start(1, |rack| rack.grid("")).await;
    let acme = tenant(&rack, "acme");
    let (id, _) = acme.split_once('.').expect("an id and a secret");
    let listed = program(rack.path(), &["tokens"]).expect("listed");
    assert!(listed.lines().any(|line| line == format!("{id} acme tenant")), "{listed}");
    assert!(listed.lines().any(|line| line.ends_with(" operators operator")), "{listed}");

    control.apply_farm(&farm("acme", "shop", "web")).await.expect("applied");
    let mut api = control.api().await.expect("connects");
    let follow = with_token(api::EventsRequest { after: 0, follow: true }, &acme);
    let mut stream = api.events(follow).await.expect("follows").into_inner();
    let first = stream.message().await.expect("an event").expect("one");
    assert_eq!(first.kind, "farm-applied");

    let said = program(rack.path(), &["revoke", id]).expect("taken back");
    assert!(said.contains(id), "{said}");
    let list = with_token(api::ListFarmsRequest {}, &acme);
    assert_eq!(api.list_farms(list).await.expect_err("listed").code(), Code::Unauthenticated);
    // What happens now the stream does not tell any more; events of before may still be in it.
    control.delete_farm("shop").await.expect("marked");
    let ended = tokio::time::timeout(PATIENCE, async {
        loop {
            match stream.message().await {
                Ok(Some(event)) => assert_ne!(event.kind, "farm-deleting"),
                other => break other,
            }
        }
    });
    let status = ended.await.expect("in time").expect_err("the stream ended well");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(program(rack.path(), &["revoke", id]).expect_err("twice").contains("there is none"));
}

#[test]
fn a_directory_without_a_store_gets_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("profile.toml").display().to_string();
    let token = ["token", "--organization", "acme", "--role", "tenant", "--out", &out];
    for arguments in [&token[..], &["tokens"], &["revoke", "0123456789abcdef"]] {
        let complaint = program(dir.path(), arguments).expect_err("it made one");
        assert!(complaint.contains("croft-control init"), "{complaint}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
}
