//! The desk with real records on disk, a fake keeper that prepares what is opened, and no sockets.

use std::path::Path;
use std::time::Instant;

use croft_proto::{Secret, edge};

use super::*;
use crate::boot::{Refusal, grants};
use crate::dhcp::packet::tests::message;
use crate::test_support;

const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
const IPXE: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000"), (77, b"iPXE")];
const N1: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 10);

struct Bench {
    desk: Arc<Desk>,
    notices: tokio::sync::mpsc::Receiver<Notice>,
}

fn start(dir: &Path) -> Bench {
    let (events, notices) = Events::channel(64);
    let desk = Arc::new(Desk::new(test_support::desk_parts(dir, events)));
    desk.follow(&desk.desired()).expect("follows");
    Bench { desk, notices }
}

impl Bench {
    fn apply(&self, counter: u64, change: impl FnOnce(&mut edge::DesiredState)) {
        let mut state = test_support::state();
        state.generation = Some(croft_proto::Generation { epoch: 1, counter }.into());
        // Needs no image store to render a script from.
        for assignment in &mut state.assignments {
            assignment.method = edge::BootMethod::San.into();
            assignment.image.clear();
        }
        change(&mut state);
        self.desk.parts.desired.apply(&state).expect("good");
        self.desk.follow(&self.desk.desired()).expect("follows");
    }

    /// What the keeper does once the root volume is new.
    fn prepare(&self) {
        for boot in self.desk.parts.records.all() {
            self.desk
                .parts
                .records
                .update(&boot.node, |now| {
                    Ok((now.map(|now| Boot { prepared: true, ..now.clone() }), ()))
                })
                .expect("kept");
        }
    }

    async fn ask(&self, segment: &str, kind: u8, options: &[(u8, &[u8])]) -> Option<Reply> {
        let request = Request::parse(&message(kind, options)).expect("a request");
        self.desk.dhcp(&name(segment), &request).await
    }

    fn boot(&self) -> Boot {
        self.desk.parts.records.get(&"n1".parse().expect("name")).expect("a boot")
    }

    fn attach(&self, credential: Credential) -> Result<Attached, AttachRefusal> {
        self.desk.attach(&name("shop"), N1.into(), "n1", &credential)
    }

    fn kinds(&mut self) -> Vec<&'static str> {
        std::iter::from_fn(|| self.notices.try_recv().ok()).map(|notice| notice.kind).collect()
    }

    /// As if the agent had been silent for long.
    fn quiet(&self) {
        let node = "n1".parse().expect("name");
        self.desk.presence().note(&node, |seen| seen.heard = Instant::now().checked_sub(QUIET));
    }
}

fn name(segment: &str) -> SegmentName {
    segment.parse().expect("name")
}

fn token(boot: &Boot) -> Credential {
    Credential::Token(boot.token.clone().expect("open"))
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary directory")
}

#[tokio::test]
async fn a_boot_goes_from_rom_to_agent_and_its_token_stays_spent_over_a_restart() {
    let dir = dir();
    let bench = start(dir.path());
    bench.apply(1, |_| {});
    bench.prepare();
    assert_eq!(bench.ask("shop", 1, BIOS).await.expect("offer").file, "undionly.kpxe");
    assert_eq!(
        bench.ask("shop", 3, &[BIOS, &[(50, &N1.octets())]].concat()).await.map(|r| r.file),
        Some("undionly.kpxe".to_owned())
    );
    let offer = bench.ask("shop", 1, IPXE).await.expect("offer");
    assert_eq!(offer.file, "http://10.20.1.1/boot/script");
    // The initrd has the token: not before the script, and to nobody else.
    assert!(matches!(bench.desk.node_image(&name("shop"), N1.into()), Err(Refusal::NotOpen)));
    let script = bench.desk.script(&name("shop"), N1.into()).expect("a script");
    assert!(script.contains("sanboot"));
    bench.desk.script(&name("shop"), N1.into()).expect("it may be fetched again");
    bench.desk.node_image(&name("shop"), N1.into()).expect("an initrd");
    let other: IpAddr = [10, 20, 1, 77].into();
    assert!(matches!(bench.desk.script(&name("shop"), other), Err(Refusal::Stranger)));
    assert!(matches!(bench.desk.script(&name("idle"), N1.into()), Err(Refusal::Stranger)));

    let boot = bench.boot();
    let wrong = Credential::Token(Secret::new("0".repeat(32)));
    assert!(matches!(bench.attach(wrong), Err(AttachRefusal::Credential)));
    let attached = bench.attach(token(&boot)).expect("let in");
    bench.desk.confirm(&boot.node, attached.serial).expect("kept");
    assert!(matches!(bench.attach(token(&boot)), Err(AttachRefusal::Credential)));
    assert!(matches!(bench.desk.script(&name("shop"), N1.into()), Err(Refusal::NotOpen)));

    let again = start(dir.path());
    assert!(matches!(again.attach(token(&boot)), Err(AttachRefusal::Credential)));
    again.attach(Credential::Key(attached.key)).expect("its session key is still good");
    let (before, after) = (boot, again.boot());
    assert_eq!((before.serial, before.chap), (after.serial, after.chap));
}

#[tokio::test]
async fn a_node_that_reboots_by_itself_gets_new_secrets_once_its_agent_is_silent() {
    let dir = dir();
    let mut bench = start(dir.path());
    bench.apply(1, |_| {});
    bench.prepare();
    let first = bench.boot();
    let attached = bench.attach(token(&first)).expect("let in");
    bench.desk.confirm(&first.node, attached.serial).expect("kept");
    let (ticket, cancel) = bench.desk.presence().enter(&first.node, attached.serial);
    ticket.said(|_| {});
    assert_eq!(bench.ask("shop", 1, BIOS).await, None, "its agent is alive");
    bench.quiet();
    // Prepared by the keeper while the DISCOVER waits.
    let (offer, ()) = tokio::join!(bench.ask("shop", 1, BIOS), async {
        while bench.boot().serial == first.serial {
            tokio::task::yield_now().await;
        }
        bench.prepare();
    });
    assert_eq!(offer.expect("offer").file, "undionly.kpxe");
    let second = bench.boot();
    assert_eq!((second.window, second.serial), (first.window, first.serial + 1));
    assert!(second.chap != first.chap && second.token != first.token);
    assert!(cancel.is_cancelled(), "the older boot's stream goes on");
    assert!(matches!(bench.attach(Credential::Key(attached.key)), Err(AttachRefusal::Credential)));
    assert_eq!(bench.kinds(), ["boot-again"]);
}

#[tokio::test]
async fn another_try_after_the_script_was_fetched_has_other_secrets() {
    let dir = dir();
    let bench = start(dir.path());
    bench.apply(1, |_| {});
    bench.prepare();
    bench.ask("shop", 1, IPXE).await.expect("offer");
    let first = bench.boot();
    bench.ask("shop", 1, IPXE).await.expect("a repeated DISCOVER");
    assert_eq!(bench.boot(), first);
    bench.desk.script(&name("shop"), N1.into()).expect("a script");
    drop(bench);
    // The restart forgets nothing of it.
    let bench = start(dir.path());
    let (offer, ()) = tokio::join!(bench.ask("shop", 1, IPXE), async {
        while bench.boot().serial == first.serial {
            tokio::task::yield_now().await;
        }
        bench.prepare();
    });
    assert!(offer.is_some());
    assert_ne!(bench.boot().chap, first.chap);
}

#[tokio::test]
async fn a_second_claimant_shuts_the_window_until_control_opens_another() {
    let dir = dir();
    let mut bench = start(dir.path());
    bench.apply(1, |_| {});
    bench.prepare();
    let old = bench.boot();
    let mut other = vec![0];
    other.extend_from_slice(&[0xee; 16]);
    let other: &[(u8, &[u8])] = &[BIOS[0], BIOS[1], (97, &other)];
    assert_eq!(bench.ask("shop", 1, other).await, None);
    assert_eq!(bench.ask("shop", 1, BIOS).await, None, "the window is shut for all");
    assert_eq!(bench.boot().state, State::Shut);
    assert!(matches!(bench.attach(token(&old)), Err(AttachRefusal::Credential)));
    assert_eq!(grants(&bench.desk.desired(), &[bench.boot()]), []);
    assert_eq!(bench.kinds(), ["window-conflict"]);
    bench.apply(2, |state| state.assignments[0].window += 1);
    bench.prepare();
    assert!(bench.ask("shop", 1, BIOS).await.is_some());
}

#[tokio::test]
async fn nothing_outlives_an_assignment() {
    let dir = dir();
    let bench = start(dir.path());
    bench.apply(1, |_| {});
    bench.prepare();
    let old = bench.boot();
    bench.apply(2, |state| {
        state.assignments.remove(0);
    });
    let revoked = bench.boot();
    assert_eq!(revoked.state, State::Revoked);
    assert!(revoked.token.is_none() && revoked.chap.is_none());
    assert_eq!(bench.ask("shop", 1, BIOS).await, None);
    // The same window number again opens nothing, and a change of place within it neither.
    bench.apply(3, |_| {});
    bench.prepare();
    assert_eq!(bench.boot().state, State::Revoked);
    assert!(matches!(bench.attach(token(&old)), Err(AttachRefusal::Credential)));
    bench.apply(4, |state| state.assignments[0].window = 9);
    bench.prepare();
    assert_eq!((bench.boot().state, bench.boot().window), (State::Open, 9));
    assert_eq!(bench.boot().serial, old.serial + 1);
    bench.apply(5, |state| {
        state.assignments[0].window = 9;
        state.assignments[0].address = "10.20.1.50".to_owned();
    });
    assert_eq!(bench.boot().state, State::Revoked);
}

#[tokio::test]
async fn strangers_get_silence_and_one_event() {
    let dir = dir();
    let mut bench = start(dir.path());
    bench.apply(1, |state| {
        state.nodes.remove(0);
        state.assignments.remove(0);
    });
    for _ in 0..3 {
        assert_eq!(bench.ask("shop", 1, BIOS).await, None);
        assert_eq!(bench.ask("idle", 1, IPXE).await, None);
    }
    assert_eq!(bench.kinds(), ["unknown-node"]);
}

#[tokio::test]
async fn a_node_in_the_wrong_segment_gets_nothing_and_only_a_genuine_one_shuts_its_window() {
    let dir = dir();
    let mut bench = start(dir.path());
    bench.apply(1, |_| {});
    bench.prepare();
    assert_eq!(bench.ask("idle", 1, BIOS).await, None);
    assert_eq!(bench.boot().state, State::Open, "anybody can write a MAC address");
    let uuid = bench.desk.desired().nodes[&"n1".parse().expect("name")].uuid.expect("known");
    let mut option = vec![0];
    option.extend_from_slice(uuid.as_bytes());
    let genuine: &[(u8, &[u8])] = &[BIOS[0], BIOS[1], (97, &option)];
    assert_eq!(bench.ask("idle", 1, genuine).await, None);
    assert_eq!(bench.boot().state, State::Shut);
    assert_eq!(bench.kinds(), ["wrong-segment", "window-conflict"]);
}

#[tokio::test]
async fn an_operating_system_gets_its_address_and_nothing_to_boot_from() {
    let dir = dir();
    let bench = start(dir.path());
    bench.apply(1, |_| {});
    let reply = bench.ask("shop", 1, &[]).await.expect("an address");
    assert_eq!((reply.yiaddr, reply.file.as_str()), (N1, ""));
}
