//! Task management, reservations, mode pages and copies.

use super::*;

#[tokio::test]
async fn nop_logout_and_task_management_are_answered() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    initiator.send(initiator.ping(), b"echo").await;
    assert_eq!(initiator.expect(opcode::NOP_IN).await.1, b"echo");
    // A write that waits for its data is aborted, and its data is then ignored.
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    let tag = header.task_tag();
    initiator.send(header, &[]).await;
    let (r2t, _) = initiator.expect(opcode::R2T).await;
    initiator.send(initiator.manage(1, tag), &[]).await;
    let (response, _) = initiator.expect(opcode::TASK_MANAGEMENT_RESPONSE).await;
    assert_eq!(response.0[2], 0);
    let late = initiator.data_out(tag, r2t.u32(20), 0, 0, true);
    initiator.send(late, &[5; 4096]).await;
    initiator.send(initiator.manage(1, tag), &[]).await;
    let (response, _) = initiator.expect(opcode::TASK_MANAGEMENT_RESPONSE).await;
    assert_eq!(response.0[2], 1, "the task does not exist any more");
    assert_eq!(initiator.read(0, 8).await, Ok(vec![0; 4096]));
    initiator.log_out().await;
    server.stop().await;
}

#[tokio::test]
async fn a_lun_reset_aborts_and_tells_every_nexus_once() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    // A task of the other session that the reset aborts, too.
    let pending = two.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    two.send(pending, &[]).await;
    let (asked, _) = two.expect(opcode::R2T).await;
    // The second unit is the same volume, write-protected.
    let header = one.command(1, 0xa0, &cdb10(0x2a, 0, 1), 512);
    one.send(header, &[1; 512]).await;
    let (status, sense) = one.status().await;
    assert_eq!((status, sense[4] & 0x0f, sense[14]), (2, 7, 0x27));
    let header = one.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    one.send(header, &[]).await;
    one.expect(opcode::R2T).await;
    one.send(one.manage(5, NO_TAG), &[]).await;
    let (response, _) = one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await;
    assert_eq!(response.0[2], 0);
    for expected in [2, 0] {
        let header = one.command(0, 0x80, &[0; 6], 0);
        one.send(header, &[]).await;
        assert_eq!(one.status().await.0, expected);
    }
    let late = two.data_out(pending.task_tag(), asked.u32(20), 0, 0, true);
    two.send(late, &[7; 4096]).await;
    assert_eq!(two.status().await.0, TASK_ABORTED);
    let header = two.command(0, 0x80, &[0; 6], 0);
    two.send(header, &[]).await;
    let (status, sense) = two.status().await;
    assert_eq!((status, sense[4] & 0x0f, sense[14], sense[15]), (2, 6, 0x29, 0x03));
    assert_eq!(two.read(0, 8).await, Ok(vec![0; 4096]), "the aborted write did nothing");
    server.stop().await;
}

/// A PERSISTENT RESERVE OUT with the parameter list that most have.
fn reserve_out(service: u8, kind: u8, key: u64, second: u64, flags: u8) -> ([u8; 10], Vec<u8>) {
    let cdb = [0x5f, service, kind, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [key.to_be_bytes(), second.to_be_bytes()].concat();
    list.resize(24, 0);
    list[20] = flags;
    (cdb, list)
}

const CONFLICT: u8 = 0x18;
const TASK_ABORTED: u8 = 0x40;

/// Sense key and codes of fixed format.
fn codes(sense: &[u8]) -> (u8, u8, u8) {
    (sense[2] & 0x0f, sense[12], sense[13])
}

#[tokio::test]
async fn reservations_outlive_sessions_and_with_aptpl_the_process() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    let (cdb, list) = reserve_out(6, 0, 0, 0xa1, 0x01);
    assert_eq!(one.give(0, &cdb, &list).await.0, 0, "register, to be kept");
    let (cdb, list) = reserve_out(1, 0x01, 0xa1, 0, 0);
    assert_eq!(two.give(0, &cdb, &list).await.0, CONFLICT, "not registered");
    assert_eq!(one.give(0, &cdb, &list).await.0, 0, "reserve: write exclusive");
    let write = cdb10(0x2a, 0, 1);
    assert_eq!(two.give(0, &write, &[1; 512]).await.0, CONFLICT);
    assert!(two.read(0, 1).await.is_ok());
    assert_eq!(two.ready(0).await.0, 0);
    // Another unit is not concerned; the same volume under another number is.
    assert_eq!(two.give(2, &write, &[1; 512]).await.0, 0);
    let fua = [0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(two.give(1, &fua, &[1; 512]).await.0, CONFLICT);
    // The nexus is lost; a later session of the same port holds still, one of another does not.
    drop(one);
    let mut again = Initiator::logged_in(&server, 1).await;
    assert_eq!(again.give(0, &write, &[2; 512]).await.0, 0);
    let server = server.restart().await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    assert_eq!(two.give(0, &write, &[1; 512]).await.0, CONFLICT);
    assert_eq!(one.give(0, &write, &[3; 512]).await.0, 0);
    let status = one.ask(0, &[0x5e, 3, 0, 0, 0, 0, 0, 16, 0, 0]).await.expect("full status");
    assert_eq!(status[0..4], [0; 4], "the generation starts again");
    assert_eq!((&status[8..16], status[20], status[21]), (&0xa1_u64.to_be_bytes()[..], 1, 1));
    let port = format!("{},i,0x800000000001\0", one.name);
    assert_eq!(status[36..36 + port.len()], *port.as_bytes());
    let mut moved = Initiator::logged_in(&server, 2).await;
    assert_eq!(moved.give(0, &write, &[3; 512]).await.0, CONFLICT, "another ISID");
    // A volume that begins anew has no reservations, whoever has the old one open.
    let root = "root".parse().expect("valid");
    server.target.forget_reservations(&root).expect("forgotten");
    assert_eq!(two.give(0, &write, &[1; 512]).await.0, 0);
    let server = server.restart().await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    assert_eq!(two.give(0, &write, &[1; 512]).await.0, 0);
    server.stop().await;
}

#[tokio::test]
async fn who_is_preempted_and_aborted_writes_nothing_more() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    for (initiator, key) in [(&mut one, 0xa1), (&mut two, 0xa2)] {
        let (cdb, list) = reserve_out(0, 0, 0, key, 0);
        assert_eq!(initiator.give(0, &cdb, &list).await.0, 0);
    }
    // Write exclusive, registrants only.
    let (cdb, list) = reserve_out(1, 0x05, 0xa1, 0, 0);
    assert_eq!(one.give(0, &cdb, &list).await.0, 0);
    let header = one.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    one.send(header, &[]).await;
    let (asked, _) = one.expect(opcode::R2T).await;
    let (cdb, list) = reserve_out(5, 0x05, 0xa2, 0xa1, 0);
    assert_eq!(two.give(0, &cdb, &list).await.0, 0, "preempt and abort");
    let late = one.data_out(header.task_tag(), asked.u32(20), 0, 0, true);
    one.send(late, &[7; 4096]).await;
    assert_eq!(one.status().await.0, TASK_ABORTED);
    // REGISTRATIONS PREEMPTED, once, and not for who did it.
    let (status, sense) = one.ready(0).await;
    assert_eq!((status, codes(&sense)), (2, (6, 0x2a, 0x05)));
    assert_eq!(one.ready(0).await.0, 0);
    assert_eq!(two.ready(0).await.0, 0);
    assert_eq!(one.give(0, &cdb10(0x2a, 0, 1), &[7; 512]).await.0, CONFLICT);
    assert_eq!(two.read(0, 8).await, Ok(vec![0; 4096]), "the aborted write did nothing");
    // RESERVE (6) is refused to strangers and does nothing for registrants.
    assert_eq!(one.give(0, &[0x16, 0, 0, 0, 0, 0], &[]).await.0, CONFLICT);
    assert_eq!(two.give(0, &[0x16, 0, 0, 0, 0, 0], &[]).await.0, 0);
    let (cdb, list) = reserve_out(3, 0, 0xa2, 0, 0);
    assert_eq!(two.give(0, &cdb, &list).await.0, 0, "clear");
    assert_eq!(one.give(0, &cdb10(0x2a, 0, 1), &[7; 512]).await.0, 0);
    server.stop().await;
}

#[tokio::test]
async fn wrong_reservation_requests_say_what_is_wrong() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let (cdb, list) = reserve_out(0, 0, 0, 0xa1, 0);
    assert_eq!(codes(&one.give(1, &cdb, &list).await.1), (7, 0x27, 0), "write-protected");
    let mut short = cdb;
    short[8] = 23;
    assert_eq!(codes(&one.give(0, &short, &list[..23]).await.1), (5, 0x1a, 0));
    assert_eq!(one.give(0, &cdb, &list).await.0, 0);
    let (cdb, list) = reserve_out(1, 0x12, 0xa1, 0, 0);
    assert_eq!(codes(&one.give(0, &cdb, &list).await.1), (5, 0x24, 0), "no such scope");
    let (cdb, list) = reserve_out(4, 0x01, 0xa1, 0, 0);
    assert_eq!(codes(&one.give(0, &cdb, &list).await.1), (5, 0x26, 0), "no key");
    let (cdb, list) = reserve_out(1, 0x03, 0xa1, 0, 0);
    assert_eq!(one.give(0, &cdb, &list).await.0, 0);
    let (cdb, list) = reserve_out(2, 0x01, 0xa1, 0, 0);
    assert_eq!(codes(&one.give(0, &cdb, &list).await.1), (5, 0x26, 0x04), "another type");
    let capabilities = one.ask(0, &[0x5e, 2, 0, 0, 0, 0, 0, 16, 0, 0]).await.expect("data");
    assert_eq!(capabilities, [0, 8, 0x1d, 0x80, 0xea, 0x01, 0, 0]);
    assert!(one.ask(0, &[0x5e, 4, 0, 0, 0, 0, 0, 16, 0, 0]).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn mode_pages_change_for_all_and_the_others_are_told() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut two = Initiator::of(&server, "n2", 1).await;
    let control = one.ask(0, &[0x1a, 0x08, 0x0a, 0, 255, 0]).await.expect("page");
    let mut list = control.clone();
    list[0] = 0;
    list[6] |= 0x04;
    list[8] |= 0x08;
    let select = [0x15, 0x10, 0, 0, list.len() as u8, 0];
    assert_eq!(codes(&one.give(1, &select, &list).await.1), (5, 0x26, 0), "read-only session");
    assert_eq!(one.give(0, &select, &list).await.0, 0, "D_SENSE and SWP");
    let (status, sense) = two.ready(0).await;
    assert_eq!((status, sense[0], &sense[1..4]), (2, 0x72, &[6, 0x2a, 0x01][..]));
    for initiator in [&mut one, &mut two] {
        assert_eq!(initiator.ready(0).await.0, 0);
        let (_, sense) = initiator.give(0, &cdb10(0x2a, 0, 1), &[1; 512]).await;
        assert_eq!(sense[0..4], [0x72, 7, 0x27, 0]);
        assert!(initiator.read(0, 1).await.is_ok());
    }
    // Who protects a unit and dies must not keep the others from shutting it out.
    for (key, new) in [(0, 0xa1), (0xa1, 0)] {
        let (cdb, list) = reserve_out(0, 0, key, new, 0);
        assert_eq!(two.give(0, &cdb, &list).await.0, 0);
    }
    one.send(one.manage(5, NO_TAG), &[]).await;
    assert_eq!(one.expect(opcode::TASK_MANAGEMENT_RESPONSE).await.0.0[2], 0);
    assert_eq!(codes(&one.ready(0).await.1), (6, 0x29, 0x03), "fixed format again");
    assert_eq!(one.ask(0, &[0x1a, 0x08, 0x0a, 0, 255, 0]).await, Ok(control));
    assert_eq!(one.give(0, &cdb10(0x2a, 0, 1), &[1; 512]).await.0, 0);
    server.stop().await;
}

/// An EXTENDED COPY of 100 blocks between the units with these designators.
fn extended_copy(from: &[u8], to: &[u8], source: u64, target: u64) -> ([u8; 16], Vec<u8>) {
    let mut list = vec![9, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for name in [from, to] {
        let mut descriptor = vec![0xe4, 0, 0, 0];
        descriptor.extend(name);
        descriptor.resize(32, 0);
        descriptor[30] = 0x02;
        list.extend(descriptor);
    }
    list.extend([0x02, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 100]);
    list.extend(source.to_be_bytes());
    list.extend(target.to_be_bytes());
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[13] = list.len() as u8;
    (cdb, list)
}

#[tokio::test]
async fn blocks_are_copied_between_the_units_of_a_session() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    let mut names = Vec::new();
    for lun in [0, 2] {
        let page = one.ask(lun, &[0x12, 1, 0x83, 0, 255, 0]).await.expect("page 83h");
        names.push(page[4..24].to_vec());
    }
    let data = pattern(100 * 512, 5);
    let header = one.command(0, 0xa0, &cdb10(0x2a, 7, 100), 100 * 512);
    one.send(header, &[]).await;
    assert_eq!(one.serve_r2ts(&data).await.0, 0);
    let (cdb, list) = extended_copy(&names[0], &names[1], 7, 33);
    assert_eq!(one.give(0, &cdb, &list).await.0, 0);
    let header = one.command(2, 0xc0, &cdb10(0x28, 33, 100), 100 * 512);
    one.send(header, &[]).await;
    let mut copied = Vec::new();
    while copied.len() < data.len() {
        copied.extend(one.expect(opcode::DATA_IN).await.1);
    }
    assert_eq!(copied, data);
    let status = one.ask(0, &[0x84, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]).await;
    assert_eq!(status.expect("kept")[4..12], [0x01, 0, 1, 0xf1, 0, 0, 0, 100]);
    // Over itself: as if it were taken first and put then.
    let (cdb, list) = extended_copy(&names[0], &names[0], 7, 8);
    assert_eq!(one.give(0, &cdb, &list).await.0, 0);
    assert_eq!(one.read(8, 100).await, Ok(data));
    // A unit that the session does not see, and one that it may not write.
    let mut stranger = names[1].clone();
    stranger[19] ^= 1;
    let (cdb, list) = extended_copy(&names[0], &stranger, 0, 0);
    assert_eq!(codes(&one.give(0, &cdb, &list).await.1), (0x0a, 0x08, 0x04));
    let (cdb, list) = extended_copy(&names[1], &names[0], 0, 0);
    assert_eq!(codes(&one.give(1, &cdb, &list).await.1), (0x0a, 0x0d, 0x01));
    let beyond = extended_copy(&names[0], &names[1], 0, (64 << 11) - 99);
    assert_eq!(codes(&one.give(0, &beyond.0, &beyond.1).await.1), (0x0a, 0, 0));
    server.stop().await;
}

#[tokio::test]
async fn sanitize_leaves_zeros_for_everybody() {
    let server = Server::start(Limits::default()).await;
    let mut one = Initiator::logged_in(&server, 1).await;
    assert_eq!(one.give(0, &cdb10(0x2a, 5, 8), &[9; 4096]).await.0, 0);
    let erase = |flags: u8| [0x48, flags, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(codes(&one.give(1, &erase(0x02), &[]).await.1), (7, 0x27, 0), "write-protected");
    assert_eq!(one.give(0, &erase(0x82), &[]).await.0, 0, "block erase, at once");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (status, sense) = one.ready(0).await;
        if status == 0 {
            break;
        }
        assert_eq!(codes(&sense), (2, 0x04, 0x1b), "in progress");
        assert!(tokio::time::Instant::now() < deadline);
    }
    assert_eq!(one.read(5, 8).await, Ok(vec![0; 4096]));
    assert_eq!(one.give(0, &cdb10(0x2a, 5, 8), &[9; 4096]).await.0, 0);
    assert_eq!(one.give(0, &erase(0x03), &[]).await.0, 0, "crypto erase");
    assert_eq!(one.read(5, 8).await, Ok(vec![0; 4096]));
    assert_eq!(one.give(0, &erase(0x1f), &[]).await.0, 0, "nothing has failed");
    server.stop().await;
}
