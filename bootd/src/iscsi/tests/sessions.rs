//! Who gets in, who is displaced, and how sessions end.

use super::*;

#[tokio::test]
async fn refused_logins_are_notices_and_never_sessions() {
    let mut server = Server::start(Limits::default()).await;
    let mut wrong = Initiator::connect(&server, 1).await;
    wrong.secret = "another secret".to_owned();
    assert_eq!(wrong.log_in().await, 0x0201);
    let notice = server.notice().await;
    assert_eq!(notice.kind, "login-refused");
    assert_eq!(notice.node, Some("n1".parse().expect("valid")));
    assert!(!notice.text.contains("another secret") && !notice.text.contains(SECRET));
    let mut unknown = Initiator::connect(&server, 1).await;
    unknown.name = Iqn::initiator(&"n9".parse().expect("valid")).to_string();
    assert_eq!(unknown.log_in().await, 0x0202);
    assert!(server.notice().await.text.contains("n9"));
    // Skipping the security stage does not help.
    let mut hasty = Initiator::connect(&server, 1).await;
    let names = format!(
        "InitiatorName={}\0TargetName={}\0SessionType=Normal\0",
        grant("n1", 1).initiator,
        grant("n1", 1).target
    );
    assert_eq!(hasty.login_step(0x87, &names).await.0, 0x0201);
    let mut hasty = Initiator::connect(&server, 1).await;
    assert_eq!(hasty.login_step(0x83, &format!("{names}AuthMethod=None\0")).await.0, 0x0201);
    // Nor does another's target.
    let mut lost = Initiator::connect(&server, 1).await;
    let names = names.replace("member.shop.web.1", "member.shop.web.2");
    assert_eq!(lost.login_step(0x81, &format!("{names}AuthMethod=CHAP\0")).await.0, 0x0203);
    assert!(server.target.sessions().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_grant_ends_its_session_at_once_and_no_other() {
    let server = Server::start(Limits::default()).await;
    let other =
        Grant { target: Iqn::target(&"shop/web/2".parse().expect("valid")), ..grant("n2", 1) };
    server.zones.replace(vec![grant("n1", 1), other.clone()]);
    let mut initiator = Initiator::logged_in(&server, 1).await;
    server.zones.replace(vec![other, grant("n1", 1)]);
    assert!(initiator.read(0, 1).await.is_ok(), "an equal grant changes nothing");
    assert_eq!(server.target.sessions().len(), 1);
    server.zones.replace(vec![grant("n1", 2)]);
    initiator.dropped().await;
    let mut again = Initiator::connect(&server, 1).await;
    server.zones.replace(Vec::new());
    assert_eq!(again.log_in().await, 0x0202);
    server.stop().await;
}

#[tokio::test]
async fn a_newer_session_of_the_node_takes_the_place_of_older_ones() {
    let server = Server::start(Limits::default()).await;
    let mut firmware = Initiator::logged_in(&server, 1).await;
    assert!(firmware.read(0, 1).await.is_ok());
    // A login that fails disturbs nobody.
    let mut wrong = Initiator::connect(&server, 2).await;
    wrong.secret = "another secret".to_owned();
    assert_eq!(wrong.log_in().await, 0x0201);
    assert!(firmware.read(0, 1).await.is_ok());
    // Another ISID: displacement. The same: reinstatement.
    let mut system = Initiator::logged_in(&server, 2).await;
    assert!(system.read(0, 1).await.is_ok());
    firmware.dropped().await;
    let mut again = Initiator::logged_in(&server, 2).await;
    assert!(again.read(0, 1).await.is_ok());
    system.dropped().await;
    assert_eq!(server.target.sessions().len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_boots_trace_tells_of_logins_and_of_the_first_read_of_each() {
    let server = Server::start(Limits::default()).await;
    let node = "n1".parse().expect("valid");
    let note =
        |stage, text| server.traces.note(&node, Seen::of(Service::Http, text).reaching(stage));
    let asked = Seen::of(Service::Dhcp, "asked").reaching(Stage::Ipxe);
    server.traces.note(&node, asked.beginning(1));
    let mut firmware = Initiator::logged_in(&server, 1).await;
    assert!(firmware.read(0, 1).await.is_ok() && firmware.read(1, 1).await.is_ok());
    note(Stage::Kernel, "kernel");
    let mut system = Initiator::logged_in(&server, 2).await;
    assert!(system.read(0, 1).await.is_ok());
    let boots = server.traces.boots(&node);
    let steps: Vec<_> = boots[0].steps.iter().map(|step| step.text.as_str()).collect();
    let read = "first read of this session";
    let before = "logged in before a kernel was fetched";
    let expected = ["asked", before, read, "kernel", "the operating system logged in", read];
    assert_eq!((steps.as_slice(), boots[0].stage.as_str()), (&expected[..], "login"));
    server.stop().await;
}

#[tokio::test]
async fn discovery_shows_the_own_target_and_nothing_else() {
    let server = Server::start(Limits::default()).await;
    let other =
        Grant { target: Iqn::target(&"bank/web/1".parse().expect("valid")), ..grant("n2", 1) };
    server.zones.replace(vec![grant("n1", 1), other]);
    let mut initiator = Initiator::connect(&server, 1).await;
    let text =
        format!("InitiatorName={}\0SessionType=Discovery\0AuthMethod=None\0", initiator.name);
    assert_eq!(initiator.login_step(0x83, &text).await.0, 0);
    let mut request = Header::new(opcode::TEXT);
    request.set_u32(16, 5).set_u32(20, NO_TAG).set_u32(24, initiator.cmd_sn);
    initiator.send(request, b"SendTargets=All\0").await;
    let (_, data) = initiator.expect(opcode::TEXT_RESPONSE).await;
    let pairs = text::parse(&data).expect("pairs");
    let address = format!("{},1", server.address);
    let target = grant("n1", 1).target;
    assert_eq!(pairs, [("TargetName", target.as_str()), ("TargetAddress", &address)]);
    // Asked for it so often that no segment holds the answer, it does not try.
    request.set_u32(24, initiator.cmd_sn + 1);
    initiator.send(request, &b"SendTargets=All\0".repeat(200)).await;
    assert_eq!(initiator.expect(opcode::REJECT).await.0.0[2], 0x09);
    server.stop().await;
}

#[tokio::test]
async fn a_silent_initiator_is_pinged_and_then_given_up() {
    let limits = Limits { idle: Duration::from_millis(200), ..Limits::default() };
    let server = Server::start(limits).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let (ping, _) = initiator.expect(opcode::NOP_IN).await;
    assert_eq!(ping.task_tag(), NO_TAG);
    assert_ne!(ping.u32(20), NO_TAG);
    let mut pong = Header::new(opcode::NOP_OUT);
    pong.set_byte(0, 0x40).set_u32(16, NO_TAG).set_u32(20, ping.u32(20));
    initiator.send(pong, &[]).await;
    initiator.expect(opcode::NOP_IN).await;
    assert!(initiator.receive().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn both_sides_prove_themselves_with_the_strongest_hash_that_both_know() {
    let server = Server::start(Limits::default()).await;
    for (isid, algorithms) in [(1, "5"), (2, "6,5"), (3, "5,6,7"), (4, "7")] {
        let mut initiator = Initiator::connect(&server, isid).await;
        initiator.algorithms = algorithms;
        assert_eq!(initiator.log_in().await, 0, "{algorithms}");
        let mut initiator = Initiator::connect(&server, isid).await;
        initiator.algorithms = algorithms;
        initiator.challenge = Some("0x00112233445566778899aabbccddeeff");
        assert_eq!(initiator.log_in().await, 0, "{algorithms}, mutual");
    }
    // A target without a secret of its own cannot, and one with the initiator's must not.
    let same = Some(Secret::new(SECRET.to_owned()));
    for target_secret in [None, same] {
        server.zones.replace(vec![Grant { target_secret, ..grant("n1", 1) }]);
        let mut initiator = Initiator::connect(&server, 1).await;
        initiator.challenge = Some("0x00112233445566778899aabbccddeeff");
        assert_eq!(initiator.log_in().await, 0x0201);
    }
    server.stop().await;
}

#[tokio::test]
async fn our_own_challenge_sent_back_is_not_answered() {
    let server = Server::start(Limits::default()).await;
    let mut mirror = Initiator::connect(&server, 1).await;
    let names = format!("InitiatorName={}\0TargetName={}\0", mirror.name, grant("n1", 1).target);
    assert_eq!(mirror.login_step(0x81, &format!("{names}AuthMethod=CHAP\0")).await.0, 0);
    let (_, text) = mirror.login_step(0x00, "CHAP_A=7\0").await;
    let challenge = text::binary(value(&text, "CHAP_C"), 64).expect("binary");
    let identifier = value(&text, "CHAP_I").parse().expect("a number");
    let secret = Secret::new(SECRET.to_owned());
    let right = text::to_hex(&Algorithm::Sha256.respond(identifier, &secret, &challenge));
    let back = format!(
        "CHAP_N={}\0CHAP_R={right}\0CHAP_I={identifier}\0CHAP_C={}\0",
        mirror.name,
        value(&text, "CHAP_C")
    );
    assert_eq!(mirror.login_step(0x81, &back).await.0, 0x0201);
    server.stop().await;
}

#[tokio::test]
async fn guesses_at_a_secret_are_taken_slower_and_slower() {
    let server = Server::start(Limits::default()).await;
    let start = tokio::time::Instant::now();
    for _ in 0..3 {
        let mut wrong = Initiator::connect(&server, 1).await;
        wrong.secret = "another secret".to_owned();
        assert_eq!(wrong.log_in().await, 0x0201);
    }
    // Each answer comes after 0.3 s, and the third attempt begins 0.6 s after the second failed.
    assert!(start.elapsed() >= Duration::from_millis(300 + 600 + 300 - 100));
    let mut right = Initiator::connect(&server, 1).await;
    assert_eq!(right.log_in().await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_login_is_sent_where_the_target_is() {
    let mut server = Server::start(Limits::default()).await;
    let elsewhere = Server::start(Limits::default()).await;
    let redirect = Some(elsewhere.address);
    server.zones.replace(vec![Grant { redirect, ..grant("n1", 1) }]);
    let mut initiator = Initiator::connect(&server, 1).await;
    let names = format!("InitiatorName={}\0TargetName={}\0", initiator.name, grant("n1", 1).target);
    let (status, text) = initiator.login_step(0x81, &format!("{names}AuthMethod=CHAP\0")).await;
    assert_eq!(status, 0x0101);
    assert_eq!(value(&text, "TargetAddress"), format!("{},1", elsewhere.address));
    assert!(initiator.receive().await.is_none());
    let mut initiator = Initiator::logged_in(&elsewhere, 1).await;
    assert!(initiator.read(0, 1).await.is_ok());
    assert!(server.notices.try_recv().is_err(), "that is no refusal");
    server.stop().await;
    elsewhere.stop().await;
}

#[tokio::test]
async fn several_portals_lead_to_the_same_units() {
    let server = Server::start(Limits::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let second = listener.local_addr().expect("address");
    let (target, cancel) = (server.target.clone(), server.cancel.clone());
    let segment: SegmentName = "seg100".parse().expect("valid");
    let task = tokio::spawn(async move { target.serve(listener, segment, cancel).await });
    let mut initiator = Initiator::connect(&server, 1).await;
    let text =
        format!("InitiatorName={}\0SessionType=Discovery\0AuthMethod=None\0", initiator.name);
    assert_eq!(initiator.login_step(0x83, &text).await.0, 0);
    let mut request = Header::new(opcode::TEXT);
    request.set_u32(16, 5).set_u32(20, NO_TAG).set_u32(24, initiator.cmd_sn);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        // The second portal opens in a task of its own.
        initiator.send(request, b"SendTargets=All\0").await;
        let (_, data) = initiator.expect(opcode::TEXT_RESPONSE).await;
        request.set_u32(24, request.u32(24) + 1);
        let pairs = text::parse(&data).expect("pairs");
        let addresses: Vec<_> =
            pairs.iter().filter(|(key, _)| *key == "TargetAddress").map(|(_, a)| *a).collect();
        if addresses == [format!("{},1", server.address), format!("{second},1")] {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{addresses:?}");
    }
    let mut one = Initiator::logged_in(&server, 1).await;
    assert_eq!(one.give(0, &cdb10(0x2a, 3, 1), &[6; 512]).await.0, 0);
    let mut two = Initiator::connect(&server, 1).await;
    two.stream = within(TcpStream::connect(second)).await.expect("connected");
    two.name = grant("n2", 1).initiator.to_string();
    assert_eq!(two.log_in().await, 0);
    assert_eq!(two.read(3, 1).await, Ok(vec![6; 512]));
    server.stop().await;
    within(task).await.expect("no panic");
}

#[tokio::test]
async fn a_portal_that_closes_asks_for_a_logout_first() {
    let limits = Limits { farewell: Duration::from_secs(10), ..Limits::default() };
    let server = Server::start(limits).await;
    let mut polite = Initiator::logged_in(&server, 1).await;
    server.cancel.cancel();
    let (header, _) = polite.expect(opcode::ASYNC_MESSAGE).await;
    assert_eq!((header.0[36], header.0[42..44].to_vec()), (1, vec![0, 10]));
    // It may finish what it does.
    assert!(polite.read(0, 1).await.is_ok());
    polite.log_out().await;
    within(server.task).await.expect("no panic");
    // One that does not listen is closed, and told so.
    let server = Server::start(Limits::default()).await;
    let mut deaf = Initiator::logged_in(&server, 1).await;
    server.cancel.cancel();
    assert_eq!(deaf.expect(opcode::ASYNC_MESSAGE).await.0.0[36], 1);
    deaf.dropped().await;
    within(server.task).await.expect("no panic");
}
