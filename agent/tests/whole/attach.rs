//! The agent against a collector of our own, over real TLS: attach, re-attach, poll, orders.

use std::fs;
use std::io::ErrorKind;

use crate::support::{Agent, Bootd, Told, key, mode, until, welcome};
use croft_proto::agent::hello::Credential;
use croft_proto::agent::{PhaseOrder, agent_message, bootd_message};
use croft_proto::common::health_check::Kind;
use croft_proto::common::{Health, HealthCheck, Member, Membership, Phase};

#[tokio::test]
async fn the_token_buys_one_attach_and_the_key_of_this_boot_every_later_one() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let mut agent = Agent::boot(bootd.address, &key.cert.pem());

    let mut first = bootd.next().await;
    assert_eq!(first.hello.node, "n1");
    assert_eq!(first.hello.credential, Some(Credential::BootToken("boot-token-of-n1".to_owned())));
    first.say(bootd_message::Body::Welcome(welcome("shop/web/2", "key-of-this-boot"))).await;
    let sample = first.sample_where(|sample| sample.health() == Health::Healthy).await;
    let load = sample.load.expect("a load");
    assert!((0.0..=1.0).contains(&load.cpu) && load.memory_total_bytes > 0);
    assert!(sample.backends.is_empty() && sample.health_detail.is_empty());

    let kept = agent.file("session.key");
    assert_eq!(fs::read_to_string(&kept).expect("kept"), "key-of-this-boot");
    assert_eq!(mode(&kept), 0o600);
    let config = fs::read_to_string(agent.file("agent.json")).expect("there");
    assert!(!config.contains("boot-token-of-n1"), "the spent token is forgotten");
    assert_eq!(mode(&agent.file("agent.json")), 0o600);
    assert_eq!(agent.machine.told(), [Told::HostName("shop-web-2".to_owned())]);

    // bootd goes and comes back at the same address with the same certificate.
    let address = bootd.address.to_string();
    drop((first, bootd));
    let mut bootd = Bootd::start(&address, &key).await;
    let mut second = bootd.next().await;
    let session_key = Some(Credential::SessionKey("key-of-this-boot".to_owned()));
    assert_eq!(second.hello.credential, session_key);
    second.say(bootd_message::Body::Welcome(welcome("shop/web/2", "key-of-this-boot"))).await;
    second.sample_where(|_| true).await;

    // The agent itself goes and comes back.
    agent.stop().await;
    assert!(second.closes().await);
    agent.start();
    assert_eq!(bootd.next().await.hello.credential, session_key);
}

#[tokio::test]
async fn a_collector_with_another_certificate_never_sees_the_token() {
    let (ours, other) = (key(), key());
    let mut impostor = Bootd::start("127.0.0.1:0", &other).await;
    let address = impostor.address.to_string();
    let agent = Agent::boot(impostor.address, &ours.cert.pem());
    // The agent comes back at once when the right one is there: it has gone on trying.
    let refused = tokio::time::timeout(std::time::Duration::from_secs(1), impostor.attached.recv());
    assert!(refused.await.is_err(), "nobody says Hello to an impostor");
    drop(impostor);
    let mut bootd = Bootd::start(&address, &ours).await;
    assert_eq!(bootd.next().await.hello.node, "n1");
    assert!(agent.machine.told().is_empty());
}

#[tokio::test]
async fn a_refused_token_is_not_forgotten_and_not_hammered() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let started = std::time::Instant::now();
    let agent = Agent::boot(bootd.address, &key.cert.pem());
    bootd.next().await.refuse().await;
    let again = bootd.next().await;
    assert_eq!(again.hello.credential, Some(Credential::BootToken("boot-token-of-n1".to_owned())));
    assert!(started.elapsed().as_secs() >= 3, "{:?}", started.elapsed());
    let none = fs::metadata(agent.file("session.key")).expect_err("no key was given");
    assert_eq!(none.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn membership_is_written_down_and_its_faults_are_reported() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let agent = Agent::boot(bootd.address, &key.cert.pem());
    let mut attached = bootd.next().await;
    attached.say(bootd_message::Body::Welcome(welcome("shop/web/2", "k"))).await;
    let mut membership = Membership {
        farm: "shop".to_owned(),
        version: 4,
        members: vec![Member {
            name: "shop/web/2".to_owned(),
            tier: "web".to_owned(),
            role: "web-server".to_owned(),
            address: "10.20.1.12".to_owned(),
            state: croft_proto::common::member::State::Active.into(),
        }],
        balances: Vec::new(),
    };
    attached.say(bootd_message::Body::Membership(membership.clone())).await;
    assert_eq!(attached.applied().await, (4, String::new()));
    let text = fs::read_to_string(agent.file("membership.json")).expect("written");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["member"], "shop/web/2");
    assert_eq!(json["version"], 4);
    assert_eq!(json["members"][0]["address"], "10.20.1.12");
    assert_eq!(json["members"][0]["state"], "active");

    membership.version = 5;
    membership.members[0].address = "not an address".to_owned();
    attached.say(bootd_message::Body::Membership(membership)).await;
    let (version, error) = attached.applied().await;
    assert_eq!(version, 5);
    assert!(error.contains("shop/web/2") && error.contains("IPv4"), "{error}");
    let kept = fs::read_to_string(agent.file("membership.json")).expect("there");
    assert_eq!(kept, text, "a faulty membership changes nothing");
    // It lives on.
    attached.sample_where(|_| true).await;
}

#[tokio::test]
async fn drain_makes_it_unhealthy_and_power_off_ends_it() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let mut agent = Agent::boot(bootd.address, &key.cert.pem());
    let mut attached = bootd.next().await;
    attached.say(bootd_message::Body::Welcome(welcome("shop/web/2", "k"))).await;
    attached.sample_where(|sample| sample.health() == Health::Healthy).await;
    for phase in [Phase::Drain, Phase::Run, Phase::Drain] {
        attached.say(bootd_message::Body::PhaseOrder(PhaseOrder { phase: phase.into() })).await;
        let agent_message::Body::PhaseReached(reached) = attached.hear().await else {
            panic!("the phase is reported");
        };
        assert_eq!(reached.phase(), phase);
        let sample = attached.sample_where(|_| true).await;
        let expected = match phase {
            Phase::Drain => (Health::Unhealthy, "draining"),
            _ => (Health::Healthy, ""),
        };
        assert_eq!((sample.health(), sample.health_detail.as_str()), expected);
    }
    let off = PhaseOrder { phase: Phase::PowerOff.into() };
    attached.say(bootd_message::Body::PhaseOrder(off)).await;
    let agent_message::Body::PhaseReached(reached) = attached.hear().await else {
        panic!("the phase is reported");
    };
    assert_eq!(reached.phase(), Phase::PowerOff);
    assert!(attached.closes().await);
    drop(attached);
    agent.ended().await;
    assert_eq!(agent.machine.told().last(), Some(&Told::PowerOff));
}

#[tokio::test]
async fn welcome_configures_the_outer_nic_and_the_health_check() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let agent = Agent::boot(bootd.address, &key.cert.pem());
    let mut attached = bootd.next().await;
    let closed = crate::support::free_port();
    let mut words = welcome("shop/lb/1", "k");
    words.nic1_mac = "52:54:00:00:01:01".to_owned();
    words.nic1_address = "203.0.113.10/24".to_owned();
    words.nic1_gateway = "203.0.113.1".to_owned();
    words.health = Some(HealthCheck {
        kind: Kind::Tcp.into(),
        port: closed.into(),
        interval_ms: 100,
        timeout_ms: 500,
        ..HealthCheck::default()
    });
    attached.say(bootd_message::Body::Welcome(words)).await;
    let sick = attached.sample_where(|sample| sample.health() == Health::Unhealthy).await;
    assert!(sick.health_detail.contains("cannot connect"), "{}", sick.health_detail);
    let listener = std::net::TcpListener::bind(("127.0.0.1", closed)).expect("still free");
    attached.sample_where(|sample| sample.health() == Health::Healthy).await;
    drop(listener);
    attached.sample_where(|sample| sample.health() == Health::Unhealthy).await;
    let nic = croft_agent::Nic {
        mac: "52:54:00:00:01:01".parse().expect("valid"),
        address: "203.0.113.10".parse().expect("valid"),
        prefix: 24,
        gateway: Some("203.0.113.1".parse().expect("valid")),
    };
    assert_eq!(agent.machine.told()[1..], [Told::Nic(nic)]);
}

#[tokio::test]
async fn a_welcome_that_makes_no_sense_breaks_the_stream_and_not_the_agent() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let agent = Agent::boot(bootd.address, &key.cert.pem());
    let spoil: [fn(&mut croft_proto::agent::Welcome); 4] = [
        |w| w.member = "../../etc".to_owned(),
        |w| w.nic1_mac = "ff:ff:ff:ff:ff:ff".to_owned(),
        |w| {
            w.nic1_mac = "52:54:00:00:01:01".to_owned();
            w.nic1_address = "1.2.3.4/99".to_owned();
        },
        |w| w.health = Some(HealthCheck { kind: 99, ..HealthCheck::default() }),
    ];
    for spoil in spoil {
        let mut attached = bootd.next().await;
        let mut words = welcome("shop/web/2", "k");
        spoil(&mut words);
        attached.say(bootd_message::Body::Welcome(words)).await;
        assert!(attached.closes().await);
    }
    let mut attached = bootd.next().await;
    attached.say(bootd_message::Body::Welcome(welcome("shop/web/2", "k"))).await;
    attached.sample_where(|_| true).await;
    until("the host name is set", || !agent.machine.told().is_empty()).await;
}
