//! The agent of a balancer with the real HAProxy before real servers on loopback addresses, under
//! requests that never pause: not one of them may fail, whatever happens to the servers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::support::web::{Clients, Mood, Web, get};
use crate::support::{Agent, Attached, Bootd, Told, free_port, key, until, welcome};
use croft_proto::agent::{PhaseOrder, bootd_message};
use croft_proto::common::health_check::Kind;
use croft_proto::common::member::State;
use croft_proto::common::{Balance, HealthCheck, Member, Membership, Phase};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The shop: a balancer and web servers on 127.0.8.N, which need no configuration on Linux.
struct Shop {
    version: u64,
    ports: Vec<u16>,
    backend_port: u16,
    web: Vec<(u32, State)>,
}

impl Shop {
    fn new(web: &[(u32, State)]) -> Self {
        Self { version: 0, ports: vec![free_port()], backend_port: free_port(), web: web.to_vec() }
    }

    fn address(&self, ordinal: u32) -> SocketAddr {
        format!("127.0.8.{ordinal}:{}", self.backend_port).parse().expect("valid")
    }

    fn front(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[0]))
    }

    fn membership(&self) -> Membership {
        let member = |tier: &str, role: &str, ordinal: u32, state: State| Member {
            name: format!("shop/{tier}/{ordinal}"),
            tier: tier.to_owned(),
            role: role.to_owned(),
            address: self.address(ordinal).ip().to_string(),
            state: state.into(),
        };
        let balance = |port: &u16| Balance {
            tier: "lb".to_owned(),
            listen_port: (*port).into(),
            backend_tier: "web".to_owned(),
            backend_port: self.backend_port.into(),
            check: Some(HealthCheck {
                kind: Kind::Http.into(),
                port: self.backend_port.into(),
                path: "/health".to_owned(),
                interval_ms: 1000,
                timeout_ms: 900,
            }),
        };
        let mut members = vec![member("lb", "load-balancer", 1, State::Joining)];
        members.extend(self.web.iter().map(|(o, state)| member("web", "web-server", *o, *state)));
        Membership {
            farm: "shop".to_owned(),
            version: self.version,
            members,
            balances: self.ports.iter().map(balance).collect(),
        }
    }

    /// Gives the membership to the agent and waits until it is applied.
    async fn give(&mut self, attached: &mut Attached) {
        self.version += 1;
        attached.say(bootd_message::Body::Membership(self.membership())).await;
        loop {
            let (version, error) = attached.applied().await;
            assert_eq!(error, "");
            if version == self.version {
                return;
            }
        }
    }
}

async fn runtime(socket: &Path, command: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.expect("HAProxy listens");
    stream.write_all(format!("{command}\n").as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

fn alive(pid: i32) -> bool {
    // A process that has ended and was not reaped yet has an empty command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

fn master(agent: &Agent) -> i32 {
    let text = std::fs::read_to_string(agent.file("haproxy.pid")).expect("HAProxy was started");
    text.trim().parse().expect("a number")
}

/// Ends HAProxy as the node's end does, which is also how a test leaves nothing behind.
async fn power_off(agent: &mut Agent, attached: &mut Attached) {
    let pid = master(agent);
    let off = PhaseOrder { phase: Phase::PowerOff.into() };
    attached.say(bootd_message::Body::PhaseOrder(off)).await;
    while !attached.closes().await {}
    agent.ended().await;
    assert_eq!(agent.machine.told().last(), Some(&Told::PowerOff));
    until("HAProxy has ended", || !alive(pid)).await;
}

async fn boot(bootd: &mut Bootd, certificate: &str) -> (Agent, Attached) {
    let agent = Agent::boot(bootd.address, certificate);
    let attached = bootd.next().await;
    attached.say(bootd_message::Body::Welcome(welcome("shop/lb/1", "k"))).await;
    (agent, attached)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_drain_and_go_without_one_failed_request() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let (mut agent, mut attached) = boot(&mut bootd, &key.cert.pem()).await;
    let mut shop = Shop::new(&[(11, State::Active), (12, State::Active), (13, State::Joining)]);
    let one = Web::start(shop.address(11), "one").await;
    let two = Web::start(shop.address(12), "two").await;
    shop.give(&mut attached).await;
    let ports = BTreeSet::from([shop.ports[0]]);
    assert!(agent.machine.told().contains(&Told::Expose(None, ports)));
    let status = SocketAddr::from(([127, 0, 0, 1], agent.status_port()));
    assert!(get(status, "/health").await.is_ok());

    let clients = Clients::start(shop.front(), 4);
    clients.until_answered_by(&["one", "two"]).await;
    let (worker, pid) = (runtime(&agent.file("haproxy.sock"), "show info").await, master(&agent));
    let worker = worker.lines().find(|line| line.starts_with("Pid:")).expect("a worker").to_owned();

    // A third member boots and joins.
    let three = Web::start(shop.address(13), "three").await;
    shop.web[2].1 = State::Active;
    shop.give(&mut attached).await;
    clients.until_answered_by(&["one", "three", "two"]).await;

    // The first is drained while it still works on a request.
    shop.web.retain(|(ordinal, _)| *ordinal == 11);
    shop.give(&mut attached).await;
    let slow = tokio::spawn({
        let front = shop.front();
        async move { get(front, "/slow").await }
    });
    let held = |wanted: u32| {
        move |sample: &croft_proto::agent::Sample| {
            sample.backends.iter().any(|b| b.member == "shop/web/11" && b.sessions == wanted)
        }
    };
    shop.web = vec![(11, State::Draining), (12, State::Active), (13, State::Active)];
    shop.give(&mut attached).await;
    clients.until_answered_by(&["three", "two"]).await;
    attached.sample_where(held(1)).await;
    one.slow.notify_one();
    assert_eq!(slow.await.expect("no panic"), Ok("one".to_owned()));
    attached.sample_where(held(0)).await;

    // Undecided: it is made active again, then removed outright.
    shop.web[0].1 = State::Active;
    shop.give(&mut attached).await;
    clients.until_answered_by(&["one", "three", "two"]).await;
    shop.web.remove(0);
    shop.give(&mut attached).await;
    clients.until_answered_by(&["three", "two"]).await;
    attached.sample_where(|s| s.backends.iter().all(|b| b.member != "shop/web/11")).await;
    one.stop().await;

    // All of that was one worker's work: nothing was reloaded.
    let now = runtime(&agent.file("haproxy.sock"), "show info").await;
    assert!(now.contains(&worker), "{worker} is still the worker");

    // Another port is a reload, which nobody notices either; and the file knows the servers.
    shop.ports.push(free_port());
    shop.give(&mut attached).await;
    let now = runtime(&agent.file("haproxy.sock"), "show info").await;
    assert!(!now.contains(&worker), "a new worker took over");
    assert_eq!(master(&agent), pid);
    clients.until_answered_by(&["three", "two"]).await;
    let second = SocketAddr::from(([127, 0, 0, 1], shop.ports[1]));
    assert!(get(second, "/whoami").await.is_ok());

    // The agent ends and starts again: HAProxy stays, and goes on being led.
    agent.stop().await;
    assert!(alive(pid));
    agent.start();
    attached = bootd.next().await;
    attached.say(bootd_message::Body::Welcome(welcome("shop/lb/1", "k"))).await;
    shop.web[0].1 = State::Draining;
    shop.give(&mut attached).await;
    clients.until_answered_by(&["three"]).await;
    assert_eq!(master(&agent), pid);

    let count = clients.take();
    assert!(count.failures.is_empty(), "{:?}", count.failures);
    drop(clients);
    power_off(&mut agent, &mut attached).await;
    drop((two, three));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_die_with_requests_in_flight_cost_no_request() {
    let key = key();
    let mut bootd = Bootd::start("127.0.0.1:0", &key).await;
    let (mut agent, mut attached) = boot(&mut bootd, &key.cert.pem()).await;
    let mut shop = Shop::new(&[(21, State::Active), (22, State::Active)]);
    let one = Web::start(shop.address(21), "one").await;
    let two = Web::start(shop.address(22), "two").await;
    shop.give(&mut attached).await;
    let clients = Clients::start(shop.front(), 4);
    clients.until_answered_by(&["one", "two"]).await;

    // It resets every connection after the request was sent.
    one.mood.send_replace(Mood::Resetting);
    clients.until_answered_by(&["two"]).await;
    one.mood.send_replace(Mood::Well);
    clients.until_answered_by(&["one", "two"]).await;

    // It goes silent, with requests in its hands.
    one.mood.send_replace(Mood::Silent);
    clients.until_answered_by(&["two"]).await;
    // Only when its checks have failed does the luck of the draw play no part any more.
    let seen_down = tokio::time::timeout(crate::support::DEADLINE, async {
        loop {
            let stat = runtime(&agent.file("haproxy.sock"), "show stat -1 4 -1").await;
            if stat.lines().any(|l| l.contains("shop:web:21,") && l.contains(",DOWN,")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    seen_down.await.expect("its checks fail in time");
    let count = clients.take();
    assert!(count.failures.is_empty(), "{:?}", count.failures);
    assert!(count.slowest < Duration::from_secs(9), "a client waited {:?}", count.slowest);

    // Healing fences it and puts another in its place.
    let three = Web::start(shop.address(23), "three").await;
    shop.web = vec![(22, State::Active), (23, State::Active)];
    shop.give(&mut attached).await;
    clients.until_answered_by(&["three", "two"]).await;

    // Its listener is gone altogether: connections are refused.
    two.stop().await;
    clients.until_answered_by(&["three"]).await;

    // HAProxy itself is killed: the agent starts it again.
    drop(clients);
    let pid = master(&agent);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
        .expect("it runs");
    let front = shop.front();
    until("another HAProxy runs", || {
        let text = std::fs::read_to_string(agent.file("haproxy.pid")).unwrap_or_default();
        text.trim().parse::<i32>().is_ok_and(|now| now != pid && alive(now))
    })
    .await;
    let clients = Clients::start(front, 1);
    clients.until_answered_by(&["three"]).await;
    drop(clients);
    power_off(&mut agent, &mut attached).await;
    drop((one, three));
}
