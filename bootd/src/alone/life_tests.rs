//! What becomes of machines over restarts, reloads, silence, and others who want their place.

use std::time::Instant;

use super::super::leases::Lease;
use super::super::upkeep::{NEVER_CAME, WENT_AWAY, Watch};
use super::tests::*;
use super::*;
use crate::boot::{Boot, State};

/// The MAC of `request`.
const MINE: &str = "m-525400000100";

fn name(text: &str) -> NodeName {
    text.parse().expect("name")
}

fn from(mac: &str, request: Request) -> Request {
    Request { mac: mac.parse().expect("MAC"), ..request }
}

fn kind(reply: Option<Reply>) -> Option<ReplyKind> {
    reply.map(|reply| reply.kind)
}

impl Bench {
    /// Boots the machine of `request` on the segment `lan`: its address.
    async fn boot(&self) -> Ipv4Addr {
        let address = self.lan(1, BIOS).await.expect("an offer").yiaddr;
        let own = address.octets();
        let wanted = with(BIOS, &[(50, &own[..]), SERVER]);
        assert_eq!(kind(self.lan(3, &wanted).await), Some(ReplyKind::Ack));
        address
    }

    /// Tells the other server of `guests` that a machine takes this address.
    async fn learn(&self, mac: &str, host: u8) {
        let taken = [192, 168, 2, host];
        let theirs = [192, 168, 2, 1];
        let told = with(BIOS, &[(50, &taken[..]), (54, &theirs[..])]);
        assert_eq!(self.ask("guests", from(mac, request(3, &told))).await, None);
    }

    async fn renew(&self, mac: &str, address: Ipv4Addr) -> Option<ReplyKind> {
        kind(self.ask("lan", from(mac, Request { ciaddr: address, ..request(3, &[]) })).await)
    }

    fn run(&self, nodes: &[&str]) {
        *lock(&self.sessions.0) = nodes.iter().map(|node| name(node)).collect();
    }

    /// Its agent has spent its token.
    fn attach(&self, node: &str) {
        let attach = |boot: Option<&Boot>| {
            let boot = boot.expect("a boot").clone();
            Ok((Some(Boot { state: State::Attached, prepared: true, ..boot }), ()))
        };
        self.clerk.parts.records.update(&name(node), attach).expect("kept");
    }

    fn names(&self) -> Vec<String> {
        self.assigned().into_iter().map(|(node, _)| node).collect()
    }

    fn state(&self, node: &str) -> Option<State> {
        self.clerk.parts.records.get(&name(node)).map(|boot| boot.state)
    }

    fn lease(&self, address: Ipv4Addr) -> Option<Lease> {
        let plan = self.clerk.parts.plan.load_full();
        let link = plan.link_of(&"lan".parse().expect("name"), address).expect("a subnet");
        let mac = "52:54:00:00:01:00".parse().expect("MAC");
        self.clerk.with_table(link, |table| table.held(mac, now_ms())).flatten()
    }
}

#[tokio::test]
async fn a_restart_takes_nothing_from_a_node_whose_lease_ran_out() {
    let dir = dir();
    let bench = start(dir.path(), &file());
    let address = bench.boot().await;
    bench.attach(MINE);
    let mac = "52:54:00:00:01:00".parse().expect("MAC");
    assert!(bench.clerk.parts.ledger.keep(Lease { mac, address, expires: 1 }).await);
    end(bench).await;

    let bench = start(dir.path(), &file());
    assert_eq!(bench.lease(address), None, "it ran out");
    let (mut watch, begin) = (Watch::default(), Instant::now());
    for after in [0, 30, 600, 3599] {
        bench.clerk.tidy(&mut watch, begin + Duration::from_secs(after)).await;
        assert_eq!(bench.names(), [MINE], "gone after {after} s");
        assert_eq!(bench.state(MINE), Some(State::Attached), "{after} s");
    }
    // It is there: its lease lives on, and the time begins anew.
    bench.run(&[MINE]);
    let seen = begin + WENT_AWAY;
    bench.clerk.tidy(&mut watch, seen).await;
    let lease = bench.lease(address).expect("a lease that lives on");
    assert!(lease.expires > now_ms() / 1000 + 3000, "{lease:?}");
    bench.run(&[]);
    bench.clerk.tidy(&mut watch, seen + 2 * WENT_AWAY).await;
    assert_eq!(bench.names(), [MINE], "it has a lease");
    // Kept: also after the next restart.
    end(bench).await;
    let bench = start(dir.path(), &file());
    assert_eq!(bench.lease(address), Some(lease));

    // Without a lease, and away for long, it is gone, and nothing of it is left.
    let released = Request { ciaddr: address, ..request(7, &[SERVER]) };
    assert_eq!(bench.ask("lan", released).await, None);
    let (mut watch, begin) = (Watch::default(), Instant::now());
    bench.clerk.tidy(&mut watch, begin).await;
    assert_eq!(bench.names(), [MINE]);
    bench.clerk.tidy(&mut watch, begin + WENT_AWAY).await;
    assert_eq!(bench.assigned(), []);
    assert_eq!(bench.state(MINE), None);
    assert!(!dir.path().join(format!("boots/{MINE}.json")).exists());
}

#[tokio::test]
async fn nobody_takes_the_place_of_a_machine_that_runs() {
    let dir = dir();
    let mut bench = start(dir.path(), &file());
    let (one, other) = ("52:54:00:00:66:01", "52:54:00:00:66:02");
    bench.learn(one, 50).await;
    let holds = |bench: &Bench, node: &str| bench.names() == [node];
    assert!(holds(&bench, "m-525400006601"));
    bench.run(&["m-525400006601"]);
    bench.learn(other, 50).await;
    assert!(holds(&bench, "m-525400006601"), "{:?}", bench.names());
    assert_eq!(bench.state("m-525400006601"), Some(State::Open));
    assert!(bench.kinds().contains(&"address-in-use"));
    // Its boot is over: the address is another's.
    bench.run(&[]);
    bench.learn(other, 50).await;
    assert!(holds(&bench, "m-525400006602"), "{:?}", bench.names());
}

#[tokio::test]
async fn a_reload_takes_no_address_from_a_machine_that_runs() {
    let dir = dir();
    let mut bench = start(dir.path(), &file());
    let address = bench.boot().await;
    bench.run(&[MINE]);
    let text = file().replace("192.168.1.20\"", &format!("{address}\""));
    assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    let kitchen = "52:54:00:00:02:00";
    assert_eq!(bench.ask("lan", from(kitchen, request(1, BIOS))).await, None);
    assert!(bench.kinds().contains(&"address-in-use"));
    let own = address.octets();
    let wanted = with(BIOS, &[(50, &own[..]), SERVER]);
    assert_eq!(bench.ask("lan", from(kitchen, request(3, &wanted))).await, None);
    assert_eq!(bench.assigned(), [(MINE.to_owned(), address)]);
    assert_eq!(bench.renew("52:54:00:00:01:00", address).await, Some(ReplyKind::Ack));
    // When it is gone the file's word counts.
    bench.run(&[]);
    let offer = bench.ask("lan", from(kitchen, request(1, BIOS))).await.expect("an offer");
    assert_eq!(offer.yiaddr, address);
    let ack = bench.ask("lan", from(kitchen, request(3, &wanted))).await;
    assert_eq!(kind(ack), Some(ReplyKind::Ack));
    assert_eq!(bench.assigned(), [("kitchen".to_owned(), address)]);
    let text = text.replace("name = \"kitchen\"", "name = \"scullery\"");
    assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    assert_eq!(bench.renew(kitchen, address).await, Some(ReplyKind::Ack), "its name is another");
}

#[tokio::test]
async fn a_node_that_the_file_moves_keeps_its_address_until_it_boots() {
    let dir = dir();
    let bench = start(dir.path(), &file());
    let kitchen = "52:54:00:00:02:00";
    let old = Ipv4Addr::new(192, 168, 1, 20);
    let boot = async |bench: &Bench, host| {
        let offer = bench.ask("lan", from(kitchen, request(1, BIOS))).await.expect("an offer");
        assert_eq!(offer.yiaddr.octets()[3], host);
        let own = [192, 168, 1, host];
        let wanted = with(BIOS, &[(50, &own[..]), SERVER]);
        let ack = bench.ask("lan", from(kitchen, request(3, &wanted))).await;
        assert_eq!(kind(ack), Some(ReplyKind::Ack));
    };
    boot(&bench, 20).await;
    let text = file().replace("192.168.1.20\"", "192.168.1.21\"");
    assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    assert_eq!(bench.renew(kitchen, old).await, Some(ReplyKind::Ack));
    boot(&bench, 21).await;
    assert_eq!(bench.assigned(), [("kitchen".to_owned(), Ipv4Addr::new(192, 168, 1, 21))]);
    assert_eq!(bench.renew(kitchen, old).await, Some(ReplyKind::Nak));
}

#[tokio::test]
async fn a_second_nic_is_not_its_node() {
    let dir = dir();
    let text = file().replace(
        "mode = \"proxy\"",
        "pools = [\"192.168.2.100-192.168.2.110\"]\nstrangers = false",
    );
    let mut bench = start(dir.path(), &text);
    let (first, second) = ("52:54:00:00:02:00", "52:54:00:00:02:01");
    let fixed = [192, 168, 1, 20];
    let own = with(BIOS, &[(50, &fixed[..]), SERVER]);
    assert!(bench.ask("lan", from(first, request(1, BIOS))).await.is_some());
    let ack = bench.ask("lan", from(first, request(3, &own))).await;
    assert_eq!(kind(ack), Some(ReplyKind::Ack));
    let presence = Arc::clone(bench.clerk.parts.desk.presence());
    let (_ticket, _) = presence.enter(&name("kitchen"), 1);
    // On the same segment it gets another address, which it can take.
    let offer = bench.ask("lan", from(second, request(1, &[]))).await.expect("an offer");
    assert!((100..200).contains(&offer.yiaddr.octets()[3]), "{offer:?}");
    let own = offer.yiaddr.octets();
    let taken = [(50, &own[..]), SERVER];
    let ack = bench.ask("lan", from(second, request(3, &taken))).await;
    assert_eq!(kind(ack), Some(ReplyKind::Ack));
    // On another one, too, where only machines that are known get any.
    let other = "52:54:00:00:02:02";
    let text = text.replace("\"52:54:00:00:02:01\"", &format!("\"{second}\", \"{other}\""));
    assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    let offer = bench.ask("guests", from(other, request(1, &[]))).await.expect("an offer");
    assert_eq!(offer.yiaddr.octets()[..3], [192, 168, 2]);
    assert_eq!(bench.ask("guests", from("52:54:00:00:09:09", request(1, &[]))).await, None);
    assert!(!bench.kinds().contains(&"two-places"));
    assert_eq!(bench.names(), ["kitchen"]);
}

#[tokio::test]
async fn a_window_that_could_not_be_opened_is_opened_later() {
    let dir = dir();
    let bench = start(dir.path(), &file());
    let boots = dir.path().join("boots");
    let aside = dir.path().join("aside");
    std::fs::rename(&boots, &aside).expect("moved");
    std::fs::write(&boots, "no directory").expect("written");
    let address = bench.lan(1, BIOS).await.expect("an offer").yiaddr;
    let own = address.octets();
    let wanted = with(BIOS, &[(50, &own[..]), SERVER]);
    assert_eq!(bench.lan(3, &wanted).await, None, "its window is not on disk");
    // A reload is taken whole: what failed is tried again.
    let text = file().replace("home.internal", "new.internal");
    assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    let domain = bench.lan(1, &[]).await.expect("an offer");
    assert_eq!(option(&domain, 15), Some(&b"new.internal"[..]));
    std::fs::remove_file(&boots).expect("removed");
    std::fs::rename(&aside, &boots).expect("moved");
    bench.clerk.tidy(&mut Watch::default(), Instant::now()).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while bench.state(MINE) != Some(State::Open) {
        assert!(Instant::now() < deadline, "the window stays shut");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bench.boot().await, address);
}

#[tokio::test]
async fn a_reload_forgets_no_lease() {
    let dir = dir();
    let bench = start(dir.path(), &file());
    let address = bench.lan(1, &[]).await.expect("an offer").yiaddr;
    let own = address.octets();
    let wanted = [(50, &own[..]), SERVER];
    assert_eq!(kind(bench.lan(3, &wanted).await), Some(ReplyKind::Ack));
    let other = from("52:54:00:00:99:99", request(3, &wanted));
    assert_eq!(kind(bench.ask("lan", other.clone()).await), Some(ReplyKind::Nak));
    let without = file().replace("192.168.1.100-192.168.1.199", "192.168.1.50-192.168.1.60");
    for text in [without, file()] {
        assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    }
    assert_eq!(kind(bench.ask("lan", other).await), Some(ReplyKind::Nak), "it is leased");
    assert_eq!(bench.lan(1, &[]).await.expect("an offer").yiaddr, address);
}

#[tokio::test]
async fn invented_machines_beside_another_server_are_limited_and_forgotten() {
    let dir = dir();
    let bench = start(dir.path(), &file());
    for (mac, host) in [("52:54:00:00:66:01", 51), ("52:54:00:00:66:02", 52)] {
        bench.learn(mac, host).await;
    }
    assert_eq!(bench.names().len(), 2);
    let plan = bench.clerk.parts.plan.load_full();
    let link = plan.own_link(&"guests".parse().expect("name")).expect("there");
    let drained = bench
        .clerk
        .with_table(link, |table| (0..10_000).filter(|_| table.may_begin(None, now_ms())).count());
    assert!(drained.is_some_and(|begun| begun < 3000), "{drained:?}");
    bench.clerk.with_table(link, |table| while table.may_begin(None, now_ms()) {});
    bench.learn("52:54:00:00:66:03", 53).await;
    let limited = bench.names().len();
    // One more may have been let in by the time that passed.
    assert!(limited <= 3);
    bench.learn("52:54:00:00:02:00", 54).await;
    assert!(bench.names().contains(&"kitchen".to_owned()), "the file knows it");

    let (mut watch, begin) = (Watch::default(), Instant::now());
    bench.clerk.tidy(&mut watch, begin).await;
    assert_eq!(bench.names().len(), limited + 1);
    bench.run(&["m-525400006602"]);
    bench.clerk.tidy(&mut watch, begin + NEVER_CAME).await;
    assert_eq!(bench.names(), ["kitchen", "m-525400006602"]);
    bench.run(&[]);
    bench.clerk.tidy(&mut watch, begin + WENT_AWAY).await;
    assert_eq!(bench.names().len(), 2, "what ran may come back");
    bench.clerk.tidy(&mut watch, begin + NEVER_CAME + WENT_AWAY).await;
    assert_eq!(bench.names(), ["kitchen"]);
    let files = std::fs::read_dir(dir.path().join("boots")).expect("list").count();
    assert_eq!((files, bench.clerk.parts.records.all().len()), (1, 1));
    assert!(bench.clerk.parts.desk.presence().known() <= 1);
}

#[tokio::test]
async fn a_machine_beside_another_server_boots_again_with_the_same_address() {
    let dir = dir();
    let bench = start(dir.path(), &file());
    bench.learn("52:54:00:00:66:01", 51).await;
    let node = "m-525400006601";
    bench.attach(node);
    let again = || from("52:54:00:00:66:01", request(1, BIOS));
    let deadline = Instant::now() + Duration::from_secs(30);
    // Its agent was there before bootd started, as far as bootd knows, and has a while to come back.
    while bench.state(node) != Some(State::Open) {
        assert!(Instant::now() < deadline, "its window stays shut");
        let _ = bench.ask("guests", again()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.learn("52:54:00:00:66:01", 51).await;
    let script = bench.script("guests", [192, 168, 2, 51].into()).await;
    assert_eq!(script.expect("a script"), "#!ipxe\nexit 1\n");
}

#[tokio::test]
async fn a_node_known_by_its_uuid_or_its_port_renews_without_either() {
    let dir = dir();
    let uuid = "[[node]]\nname = \"lamp\"\nuuid = \"0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a\"\n\
                address = \"192.168.1.30\"\n\n[[rule]]";
    let bench = start(dir.path(), &file().replace("[[rule]]", uuid));
    let lamp = "52:54:00:00:77:01";
    let raw = [&[0][..], &[0x0a; 16]].concat();
    let shown = with(BIOS, &[(97, &raw)]);
    let offer = bench.ask("lan", from(lamp, request(1, &shown))).await.expect("an offer");
    let own = Ipv4Addr::new(192, 168, 1, 30);
    assert_eq!(offer.yiaddr, own);
    let octets = own.octets();
    let wanted = with(&shown, &[(50, &octets[..]), SERVER]);
    let ack = bench.ask("lan", from(lamp, request(3, &wanted))).await;
    assert_eq!(kind(ack), Some(ReplyKind::Ack));
    assert_eq!(bench.renew(lamp, own).await, Some(ReplyKind::Ack));
    let offer = bench.ask("lan", from(lamp, request(1, &[]))).await.expect("an offer");
    assert_eq!(offer.yiaddr, own, "its operating system asks anew");

    let rack = "52:54:00:00:77:02";
    let relayed = |kind, options: &[(u8, &[u8])]| {
        let mut request = request(kind, &with(options, &[(82, &[1, 4, 0, 4, 0, 1])]));
        request.giaddr = [192, 168, 1, 254].into();
        from(rack, request)
    };
    let address = bench.ask("lan", relayed(1, BIOS)).await.expect("an offer").yiaddr;
    let octets = address.octets();
    let wanted = with(BIOS, &[(50, &octets[..]), SERVER]);
    assert_eq!(kind(bench.ask("lan", relayed(3, &wanted)).await), Some(ReplyKind::Ack));
    assert_eq!(bench.names(), ["lamp", "rack"]);
    assert_eq!(bench.renew(rack, address).await, Some(ReplyKind::Ack));
    assert_eq!(bench.renew("52:54:00:00:77:03", address).await, Some(ReplyKind::Nak));
    // The file ties the MAC to the port, too.
    let text = file().replace("name = \"rack\"", &format!("name = \"rack\"\nmacs = [\"{rack}\"]"));
    assert!(bench.clerk.reload(parse(&text)).await.expect("it runs").is_ok());
    assert_eq!(bench.renew(rack, address).await, Some(ReplyKind::Ack));
    assert_eq!(bench.renew(rack, [192, 168, 1, 150].into()).await, None, "that is not its own");
}
