//! Work that is aborted while it is under way, and commands that wait for limits.

use super::*;
use crate::volume::Rate;

/// A server whose root volume is limited to so many bytes a second.
async fn limited(bytes: u64) -> Server {
    let server = Server::start(Limits::default()).await;
    let root = "root".parse().expect("valid");
    let rate = Rate { operations: 0, bytes };
    server.volumes.set_limits(&BTreeMap::new(), BTreeMap::from([(root, rate)]));
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_wait_for_work_in_flight_and_only_a_few_may_wait() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    let unit = server.target.unit("root");
    let nexuses = unit.nexuses();
    // Work of the other session: it stays until the test says so.
    let busy = nexuses.last().expect("its nexus").flights.enter();
    for _ in 0..8 {
        one.send(one.manage(5, NO_TAG), &[]).await;
    }
    one.send(one.manage(5, NO_TAG), &[]).await;
    let (refused, _) = one.expect(opcode::REJECT).await;
    assert_eq!(refused.0[2], 0x06, "too many immediate commands");
    // Meanwhile both sessions are served.
    assert_eq!(two.ready(0).await.0, 2, "it is told of the reset");
    assert_eq!(two.ready(0).await.0, 0);
    drop(busy);
    for _ in 0..8 {
        assert_eq!(one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await.0.0[2], 0);
    }
    one.send(one.manage(5, NO_TAG), &[]).await;
    assert_eq!(one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await.0.0[2], 0);
    server.stop().await;
}

#[tokio::test]
async fn a_session_over_its_limit_still_answers_and_aborts() {
    let server = limited(8192).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    // Two seconds of debt, and two commands that wait for it.
    let read = |one: &mut Initiator| one.command(0, 0xc0, &cdb10(0x28, 0, 32), 32 * 512);
    let first = read(&mut one);
    one.send(first, &[]).await;
    let (second, third) = (read(&mut one), read(&mut one));
    one.send(second, &[]).await;
    one.send(third, &[]).await;
    let start = tokio::time::Instant::now();
    one.send(one.ping(), b"there?").await;
    one.send(one.manage(1, second.task_tag()), &[]).await;
    let mut answers = Vec::new();
    while answers.len() < 2 {
        let (header, _) = one.receive().await.expect("open");
        match header.opcode() {
            opcode::DATA_IN => assert_eq!(header.task_tag(), first.task_tag(), "it has to wait"),
            other => answers.push((other, header.0[2])),
        }
    }
    assert_eq!(answers, [(opcode::NOP_IN, 0), (opcode::TASK_MANAGEMENT_RESPONSE, 0)]);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
    // The one that is left is served when the debt is paid.
    let (header, _) = one.expect(opcode::DATA_IN).await;
    assert_eq!(header.task_tag(), third.task_tag());
    assert!(start.elapsed() > Duration::from_millis(1500), "{:?}", start.elapsed());
    server.stop().await;
}

#[tokio::test]
async fn commands_that_move_nothing_cost_nothing() {
    let server = limited(8192).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    // It announces 4 GiB, and reads none of them.
    let header = one.command(0, 0xc0, &[0; 6], u32::MAX);
    let start = tokio::time::Instant::now();
    one.send(header, &[]).await;
    assert_eq!(one.status().await.0, 0);
    assert!(one.read(0, 1).await.is_ok());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    server.stop().await;
}
