//! Work that is aborted while it is under way, and commands that wait for limits.

use super::*;
use crate::volume::Rate;

/// A LOGICAL UNIT RESET (5) or another function on a unit, to be sent at once.
fn manage(function: u8, reference: u32, number: u32) -> Header {
    let mut header = Header::new(opcode::TASK_MANAGEMENT);
    header.set_byte(0, 0x42).set_byte(1, 0x80 | function).set_u32(16, 900);
    header.set_u32(20, reference).set_u32(24, number);
    header
}

fn ping(number: u32) -> Header {
    let mut header = Header::new(opcode::NOP_OUT);
    header.set_byte(0, 0x40).set_u32(16, 7).set_u32(20, NO_TAG).set_u32(24, number);
    header
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
        one.send(manage(5, NO_TAG, one.cmd_sn), &[]).await;
    }
    one.send(manage(5, NO_TAG, one.cmd_sn), &[]).await;
    let (refused, _) = one.expect(opcode::REJECT).await;
    assert_eq!(refused.0[2], 0x06, "too many immediate commands");
    // Meanwhile both sessions are served.
    assert_eq!(two.ready(0).await.0, 2, "it is told of the reset");
    assert_eq!(two.ready(0).await.0, 0);
    drop(busy);
    for _ in 0..8 {
        assert_eq!(one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await.0.0[2], 0);
    }
    one.send(manage(5, NO_TAG, one.cmd_sn), &[]).await;
    assert_eq!(one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await.0.0[2], 0);
    server.stop().await;
}

#[tokio::test]
async fn a_session_over_its_limit_still_answers_and_aborts() {
    let server = Server::start(Limits::default()).await;
    let rate = Rate { operations: 0, bytes: 8192 };
    server
        .volumes
        .set_limits(&BTreeMap::new(), BTreeMap::from([("root".parse().expect("valid"), rate)]));
    let mut one = Initiator::logged_in(&server, 1).await;
    // Two seconds of debt, and two commands that wait for it.
    let read = |one: &mut Initiator| one.command(0, 0xc0, &cdb10(0x28, 0, 32), 32 * 512);
    let first = read(&mut one);
    one.send(first, &[]).await;
    let (second, third) = (read(&mut one), read(&mut one));
    one.send(second, &[]).await;
    one.send(third, &[]).await;
    let start = tokio::time::Instant::now();
    one.send(ping(one.cmd_sn), b"there?").await;
    one.send(manage(1, second.task_tag(), one.cmd_sn), &[]).await;
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
    let server = Server::start(Limits::default()).await;
    let rate = Rate { operations: 0, bytes: 8192 };
    server
        .volumes
        .set_limits(&BTreeMap::new(), BTreeMap::from([("root".parse().expect("valid"), rate)]));
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
