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
    assert!(initiator.receive().await.is_none());
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
    assert!(firmware.receive().await.is_none());
    let mut again = Initiator::logged_in(&server, 2).await;
    assert!(again.read(0, 1).await.is_ok());
    assert!(system.receive().await.is_none());
    assert_eq!(server.target.sessions().len(), 1);
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
