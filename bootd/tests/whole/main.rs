//! The real program, in namespaces of its own, from control's first word to a node that reboots after
//! bootd was killed.

mod node;
mod site;
mod storage;

use std::path::Path;
use std::time::{Duration, Instant};

use croft_proto::agent::bootd_message;
use croft_proto::{AgentConfig, common, edge};
use croft_test_support::agent::{self, Agent, token};
use croft_test_support::dhcp::{ACK, BIOS, DISCOVER, IPXE, OFFER, REQUEST};
use croft_test_support::namespace::{self, sh};
use nix::sys::signal::Signal;
use node::{ask, get, mac, try_to_ask};
use site::{Site, until};
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// The node's port is in the farm's segment, another port in another farm's.
const LINKS: &[(&str, &str)] = &[("node0", "seg100"), ("other0", "seg101")];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime")
}

async fn status(site: &Site) -> edge::StatusReply {
    let reply = site.control().await.status(edge::StatusRequest {}).await;
    reply.expect("status").into_inner()
}

async fn node_status(site: &Site) -> edge::NodeStatus {
    status(site).await.nodes.remove(0)
}

async fn apply(site: &Site, state: edge::DesiredState) -> Result<(), tonic::Status> {
    let request = edge::ApplyRequest { state: Some(state) };
    site.control().await.apply(request).await.map(drop)
}

/// Applies the first state and waits until all of it is there.
async fn settle(site: &Site) {
    apply(site, site.state(1)).await.expect("taken");
    until("segments and volumes are ready", async || {
        let status = status(site).await;
        let ready = status.segments_ready == ["bank", "shop"]
            && status.volumes.iter().all(|volume| volume.ready);
        ready.then_some(())
    })
    .await;
}

/// Runs a test in namespaces of its own, against a bootd that has taken control's first state; at the
/// end bootd is asked to stop, and does so in order.
fn on_a_site(test: &str, body: impl AsyncFnOnce(&mut Site)) {
    if !namespace::enter(test, LINKS) {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut site = Site::new(dir.path());
    site.start();
    runtime().block_on(async {
        settle(&site).await;
        body(&mut site).await;
    });
    assert!(site.end(Signal::SIGTERM).success(), "bootd did not stop in order");
}

/// A connection to where agents attach, on which nothing is said.
async fn connection(dir: &Path, collector: &str) -> Channel {
    let pem = std::fs::read(dir.join("state/collector.pem")).expect("collector.pem");
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pem))
        .domain_name(croft_proto::COLLECTOR_SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://{collector}"))
        .and_then(|endpoint| endpoint.tls_config(tls))
        .expect("endpoint");
    until("agents' port answers", async || endpoint.connect().await.ok()).await
}

/// The line of a script that sets the CHAP secret.
fn password(script: &[u8]) -> String {
    let script = String::from_utf8_lossy(script);
    let line = script.lines().find(|line| line.starts_with("set password "));
    line.expect("a password").to_owned()
}

/// What operators see of n1's boot is what happened, and none of its secrets.
async fn shows_the_boot(site: &Site, config: &AgentConfig, password: &str) {
    let text = site.look("/boots/n1").await;
    for step in ["DISCOVER of BIOS: OFFER 10.20.1.10, undionly.kpxe", "kernel, 3000 kB"] {
        assert!(text.contains(step), "no {step:?} in\n{text}");
    }
    let json = site.look("/boots/n1?format=json").await;
    let boots: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((boots.as_array().map(Vec::len), &boots[0]["stage"]), (Some(1), &"healthy".into()));
    let steps = boots[0]["steps"].as_array().expect("a list");
    let services: Vec<_> = steps.iter().filter_map(|step| step["service"].as_str()).collect();
    for service in ["dhcp", "tftp", "http", "agent"] {
        assert!(services.contains(&service), "{services:?}");
    }
    let refused = steps.iter().find(|step| step["failed"] == true).expect("one was refused");
    assert_eq!(refused["text"], "refused its initrd: the node's boot window is not open");
    let kernel = steps.iter().find(|step| step["text"] == "kernel").expect("it was fetched");
    assert_eq!(
        (&kernel["moved"]["bytes"], &kernel["moved"]["of"]),
        (&3_000_000.into(), &3_000_000.into())
    );
    let request = edge::BootsRequest { node: "n1".to_owned() };
    let reply = site.control().await.boots(request).await.expect("boots").into_inner();
    assert_eq!(serde_json::to_value(&reply.boots).expect("JSON"), boots, "two tales of one boot");
    assert_eq!((reply.boots[0].window, reply.uptime_ms > 0), (1, true));
    let nameless = edge::BootsRequest { node: "n 1".to_owned() };
    let refused = site.control().await.boots(nameless).await.expect_err("no name");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let metrics = site.look("/metrics").await;
    for line in ["croft_bootd_boots_healthy_total 1", "croft_bootd_agents 1"] {
        assert!(metrics.lines().any(|l| l == line), "no {line:?} in\n{metrics}");
    }
    let secret = password.rsplit(' ').next().expect("a word");
    let token = config.boot_token.expose();
    for shown in [text, json, metrics, site.look("/boots").await] {
        assert!(!shown.contains(secret) && !shown.contains(token), "a secret is in\n{shown}");
    }
}

#[test]
fn a_node_boots_and_boots_again_after_bootd_was_killed() {
    on_a_site("a_node_boots_and_boots_again_after_bootd_was_killed", async |site| {
        let lost = site.stranger().await;
        assert!(lost.is_err(), "the edge let somebody in without a certificate");

        // Firmware and iPXE.
        let offer = ask(mac(), DISCOVER, BIOS).await;
        assert_eq!((offer.kind, offer.address.to_string()), (OFFER, "10.20.1.10".to_owned()));
        assert_eq!((offer.file.as_str(), offer.bytes.len()), ("undionly.kpxe", 300));
        let wanted: &[(u8, &[u8])] = &[BIOS[0], BIOS[1], (50, &[10, 20, 1, 10])];
        assert_eq!(ask(mac(), REQUEST, wanted).await.kind, ACK);
        sh("ip addr add 10.20.1.10/24 dev node0");
        assert_eq!(node::tftp("undionly.kpxe"), b"this is undionly.kpxe");
        let offer = ask(mac(), DISCOVER, IPXE).await;
        assert_eq!(offer.file, "http://10.20.1.1/boot/script");
        let stranger = "52:54:00:00:09:09".parse().expect("MAC");
        assert!(try_to_ask(stranger, DISCOVER, BIOS).await.is_none(), "a stranger was answered");
        assert_eq!(node::solicit_router(), 0);

        // Script, kernel, initrds.
        assert_eq!(get("/boot/node.img").await.0, 403);
        let (code, script) = get("/boot/script").await;
        assert_eq!(code, 200);
        let (code, kernel) = get(&format!("/image/{}/kernel", site.image)).await;
        assert!(code == 200 && kernel == site.kernel, "the kernel came damaged");
        let (code, initrd) = get("/boot/node.img").await;
        assert_eq!(code, 200);
        let config = agent::config(&initrd).expect("agent.json");
        assert_eq!(node_status(site).await.stage(), edge::Stage::Kernel);

        // The agent.
        let mut agent = Agent::attach(&config, None, token(&config)).await.expect("let in");
        assert_eq!(agent.welcome.member, "shop/web/1");
        assert_eq!(agent.welcome.nic1_address, "203.0.113.10/24");
        assert_eq!(agent.welcome.nic1_mac, "52:54:00:00:01:01");
        let told = agent.told().await.expect("membership");
        let bootd_message::Body::Membership(membership) = told else { panic!("{told:?}") };
        assert_eq!(membership.version, 7);
        let told = agent.told().await.expect("phase");
        let bootd_message::Body::PhaseOrder(order) = told else { panic!("{told:?}") };
        assert_eq!(order.phase(), common::Phase::Run);
        agent.polled().await.expect("polled");
        let seen = until("the sample arrives", async || {
            Some(node_status(site).await).filter(|node| node.health() == common::Health::Healthy)
        })
        .await;
        assert!(seen.attached && seen.window == 1 && seen.silent_ms > 0);
        assert_eq!(seen.stage(), edge::Stage::Attached);
        let frames = edge::FramesRequest { interval_ms: 200 };
        let mut frames = site.control().await.frames(frames).await.expect("frames").into_inner();
        agent.polled().await.expect("polled");
        let frame = until("a frame with a sample", async || {
            let frame = frames.message().await.expect("a stream").expect("a frame");
            (!frame.samples.is_empty() && frame.farm == "shop").then_some(frame)
        })
        .await;
        assert_eq!((frame.samples[0].member.as_str(), frame.samples[0].window), ("shop/web/1", 1));
        shows_the_boot(site, &config, &password(&script)).await;
        let spent = Agent::attach(&config, None, token(&config)).await.expect_err("refused");
        assert_eq!(spent.code(), Code::PermissionDenied);
        assert_eq!(get("/boot/script").await.0, 403);

        // A changed phase reaches it.
        let mut draining = site.state(2);
        draining.assignments[0].phase = common::Phase::Drain.into();
        apply(site, draining).await.expect("taken");
        let told = agent.told().await.expect("phase");
        let bootd_message::Body::PhaseOrder(order) = told else { panic!("{told:?}") };
        assert_eq!(order.phase(), common::Phase::Drain);
        let older = apply(site, site.state(1)).await.expect_err("older");
        assert_eq!(older.code(), Code::FailedPrecondition);

        // Killed, and started without a word from control.
        site.end(Signal::SIGKILL);
        site.start();
        until("the segments are back", async || {
            (status(site).await.segments_ready.len() == 2).then_some(())
        })
        .await;
        let spent = Agent::attach(&config, None, token(&config)).await.expect_err("refused");
        assert_eq!(spent.code(), Code::PermissionDenied);
        let mut agent = Agent::attach(&config, None, agent.key()).await.expect("let in again");
        agent.polled().await.expect("polled");
        assert!(
            try_to_ask(mac(), DISCOVER, BIOS).await.is_none(),
            "a running node was offered a boot"
        );
        drop(agent);

        // The node reboots by itself.
        let offer =
            until("its agent is given up", async || try_to_ask(mac(), DISCOVER, BIOS).await).await;
        assert_eq!(offer.file, "undionly.kpxe");
        assert_eq!(ask(mac(), DISCOVER, IPXE).await.kind, OFFER);
        let (code, again) = get("/boot/script").await;
        assert_eq!(code, 200);
        assert_ne!(password(&script), password(&again), "the CHAP secret is the old one");
        assert_eq!(node_status(site).await.window, 1);

        // Events were kept over the kill, and have told of it all.
        let request = edge::EventsRequest { after: 0 };
        let mut events = site.control().await.events(request).await.expect("events").into_inner();
        let mut told: Vec<String> = Vec::new();
        while !told.iter().any(|kind| kind == "boot-again") {
            let event = events.message().await.expect("a stream").expect("an event");
            assert_eq!(event.sequence, told.len() as u64 + 1);
            told.push(event.kind);
        }
        for kind in ["unknown-node", "attached", "attach-refused"] {
            assert!(told.iter().any(|k| k == kind), "no event {kind} in {told:?}");
        }

        // The assignment goes, and everything with it.
        let mut empty = site.state(3);
        empty.assignments.clear();
        empty.volumes.clear();
        apply(site, empty).await.expect("taken");
        assert_eq!(get("/boot/script").await.0, 403);
        assert!(
            try_to_ask(mac(), DISCOVER, BIOS).await.is_none(),
            "an idle node was offered a boot"
        );
        until("the volumes are deleted", async || {
            status(site).await.volumes.is_empty().then_some(())
        })
        .await;
    });
}

#[test]
fn a_switch_port_that_a_relay_names_decides() {
    on_a_site("a_switch_port_that_a_relay_names_decides", async |site| {
        // No port is known: what a relay says of one does not count.
        let own: (u8, &[u8]) = (82, b"\x01\x05port1");
        let elsewhere: (u8, &[u8]) = (82, b"\x01\x05port2");
        assert_eq!(ask(mac(), DISCOVER, &[BIOS[0], BIOS[1], own]).await.kind, OFFER);
        assert_eq!(ask(mac(), DISCOVER, &[BIOS[0], BIOS[1], elsewhere]).await.kind, OFFER);

        let mut state = site.state(2);
        state.nodes[0].circuit_id = b"port1".to_vec();
        apply(site, state).await.expect("taken");
        let offer = ask(mac(), DISCOVER, &[BIOS[0], BIOS[1], own]).await;
        assert_eq!((offer.kind, offer.address), (OFFER, node::ADDRESS));
        assert!(offer.bytes.windows(7).any(|bytes| bytes == own.1), "option 82 was not echoed");
        for options in [&[BIOS[0], BIOS[1], elsewhere][..], BIOS] {
            let answer = try_to_ask(mac(), DISCOVER, options).await;
            assert!(answer.is_none(), "a borrowed MAC was answered: {answer:?}");
        }
        let another = "52:54:00:00:09:09".parse().expect("MAC");
        let answer = try_to_ask(another, DISCOVER, &[BIOS[0], BIOS[1], own]).await;
        assert!(answer.is_none(), "another MAC was answered on the node's port: {answer:?}");
        // Its operating system renews past the relay the address that it has, and no other.
        let asked = try_to_ask(mac(), REQUEST, &[(50, &[10, 20, 1, 10])]).await;
        assert!(asked.is_none(), "nobody knows where that came from: {asked:?}");
        sh("ip addr add 10.20.1.10/24 dev node0 && ip addr add 10.20.1.11/24 dev node0");
        assert!(node::renew([10, 20, 1, 11].into()).await.is_none(), "another's address");
        let renewed = node::renew(node::ADDRESS).await.expect("a DHCP answer");
        assert_eq!((renewed.kind, renewed.address), (ACK, node::ADDRESS));

        let request = edge::EventsRequest { after: 0 };
        let mut events = site.control().await.events(request).await.expect("events").into_inner();
        let told = until("the borrowed MAC is reported", async || {
            let event = events.message().await.expect("a stream").expect("an event");
            (event.kind == "wrong-port").then_some(event)
        })
        .await;
        assert_eq!((told.node.as_str(), told.segment.as_str()), ("n1", "shop"));
        let said = "its MAC address asked on another switch port than its own: \
                    52:54:00:00:01:00, port port2";
        assert_eq!(told.text, said);
    });
}

#[test]
fn a_segment_reaches_its_own_address_of_bootd_and_no_other() {
    on_a_site("a_segment_reaches_its_own_address_of_bootd_and_no_other", async |_| {
        sh("ip addr add 10.20.1.10/24 dev node0");
        sh("ip route add 10.20.2.0/24 via 10.20.1.1");
        let connect = async |address: &str| {
            let connect = tokio::net::TcpStream::connect(address);
            tokio::time::timeout(Duration::from_secs(2), connect).await
        };
        for port in [80, 3260, 7100] {
            let own = connect(&format!("10.20.1.1:{port}")).await;
            assert!(matches!(own, Ok(Ok(_))), "port {port} of its own segment: {own:?}");
            let other = connect(&format!("10.20.2.1:{port}")).await;
            assert!(!matches!(other, Ok(Ok(_))), "port {port} of another segment answered");
        }
        let edge = std::net::SocketAddr::from(([10, 255, 0, 2], 7443));
        assert!(matches!(connect(&edge.to_string()).await, Ok(Ok(_))), "control is locked out");
        sh("ip addr del 10.255.0.1/24 dev ctl0");
        sh("ip route add 10.255.0.2/32 via 10.20.1.1");
        let reached = connect(&edge.to_string()).await;
        assert!(!matches!(reached, Ok(Ok(_))), "a node reached control's door");
        // bootd answers ARP in a segment for its address there alone.
        sh("ip route replace 10.20.2.1/32 dev node0");
        assert!(!matches!(connect("10.20.2.1:80").await, Ok(Ok(_))));
        let resolved = |address| {
            let neighbour = format!("ip neigh show {address} dev node0 | grep -q lladdr");
            std::process::Command::new("sh").args(["-c", &neighbour]).status().expect("sh runs")
        };
        assert!(resolved("10.20.1.1").success(), "its own address must answer ARP");
        assert!(!resolved("10.20.2.1").success(), "another segment's address answered ARP");
    });
}

#[test]
fn segments_come_and_go_with_the_desired_state() {
    on_a_site("segments_come_and_go_with_the_desired_state", async |site| {
        let ready = async |names: &[&str]| {
            until(&format!("{names:?} are served"), async || {
                (status(site).await.segments_ready == names).then_some(())
            })
            .await;
        };
        // A node that loses its power ends nothing, and must not keep its segment from going.
        sh("ip addr add 10.20.2.8/24 dev other0");
        let lost = connection(site.dir(), "10.20.2.1:7100").await;
        sh("ip addr del 10.20.2.8/24 dev other0");
        let mut state = site.state(2);
        state.segments.remove(1);
        let told = Instant::now();
        apply(site, state).await.expect("taken");
        ready(&["shop"]).await;
        assert!(told.elapsed() < Duration::from_secs(4), "it took {:?}", told.elapsed());
        drop(lost);
        sh("! ip -n fabric addr show dev seg101 | grep -q 'inet '");
        // A device that is made anew has another number: its sockets are made anew, too.
        sh("ip link del other0");
        apply(site, site.state(3)).await.expect("taken");
        sh("ip link add other0 type veth peer name seg101 netns fabric && ip link set other0 up");
        ready(&["bank", "shop"]).await;
        sh("ip addr add 10.20.2.9/24 dev other0");
        let connected = tokio::net::TcpStream::connect("10.20.2.1:7100").await;
        assert!(connected.is_ok(), "{connected:?}");
    });
}

#[test]
fn bad_configuration_exits_with_64_and_names_every_fault() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("bootd.toml");
    std::fs::write(&path, "state_dir = 'x'\nport = 1\n[edge]\nlisten = 'nowhere'\n")
        .expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_croft-bootd"))
        .arg("--config")
        .arg(&path)
        .output()
        .expect("bootd runs");
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8_lossy(&output.stderr);
    for part in ["line 1: state_dir", "image_dir", "line 2: port", "line 4: edge.listen", "edge.ca"]
    {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}
