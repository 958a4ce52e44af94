//! Organizations side by side: what one may neither break nor learn of another.

mod fakes;

use croft_proto::api;
use fakes::Rack;
use fakes::control::{Control, with_token};
use tonic::Code;

const BLUEPRINTS: &str = include_str!("../../images/examples/blueprints.toml");

async fn start(nodes: usize) -> (Rack, Control) {
    let rack = Rack::start(nodes).await;
    let control = Control::start(rack.path()).await;
    control.apply_grid(&rack.grid("")).await.expect("applied");
    control.apply_blueprints(BLUEPRINTS).await.expect("applied");
    (rack, control)
}

/// A farm of one web server.
fn farm(organization: &str, name: &str, tier: &str) -> String {
    format!(
        "[farm]\nname = '{name}'\norganization = '{organization}'\n\
         [[tier]]\nname = '{tier}'\nblueprint = 'web-server'\nmin = 1\nmax = 1\n"
    )
}

/// A new tenant's token.
fn tenant(rack: &Rack, organization: &str) -> String {
    let out = rack.path().join(format!("{organization}.toml"));
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_croft-control"))
        .args(["token", "--role", "tenant", "--organization", organization, "--dir"])
        .arg(rack.path())
        .arg("--out")
        .arg(&out)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
    let (rack, control) = start(2).await;
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
async fn farms_whose_names_read_alike_live_side_by_side() {
    let (rack, control) = start(3).await;
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
