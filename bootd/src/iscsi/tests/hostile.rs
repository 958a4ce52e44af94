//! Initiators that mean harm.

use tokio::io::AsyncWriteExt;

use super::*;

#[tokio::test]
async fn hostile_connections_are_bounded() {
    let limits = Limits { per_peer: 2, login: Duration::from_millis(300), ..Limits::default() };
    let mut server = Server::start(limits).await;
    // Half-open: no login comes.
    let mut silent = Initiator::connect(&server, 1).await;
    assert!(silent.receive().await.is_none());
    assert!(server.notice().await.text.contains("too long"));
    // A data segment longer than any login has.
    let mut long = Initiator::connect(&server, 1).await;
    let mut header = long.login_header(0x81);
    header.set_data_length(1 << 20);
    within(long.stream.write_all(&header.0)).await.expect("sent");
    assert!(long.receive().await.is_none());
    assert!(server.notice().await.text.contains("too long"));
    // Too many from one address.
    let held = [Initiator::connect(&server, 1).await, Initiator::connect(&server, 2).await];
    let mut third = Initiator::connect(&server, 3).await;
    assert!(third.receive().await.is_none());
    assert!(server.notice().await.text.contains("too many connections"));
    drop(held);
    server.stop().await;
}

/// A session that reads on while others misbehave.
async fn undisturbed(initiator: &mut Initiator) {
    let start = tokio::time::Instant::now();
    for _ in 0..50 {
        assert!(initiator.read(0, 8).await.is_ok());
    }
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_flood_of_logins_is_bounded_and_disturbs_nobody() {
    let mut server = Server::start(Limits { per_peer: 8, ..Limits::default() }).await;
    let mut honest = Initiator::logged_in(&server, 1).await;
    let mut open = Vec::new();
    for n in 0..100 {
        let mut one = Initiator::connect(&server, 2).await;
        if n % 2 == 0 {
            // Half of them begin a login (the text continues) and leave it there; those over the
            // limit are closed.
            let mut out = BytesMut::new();
            pdu::put(&mut out, &mut one.login_header(0x40), one.digests, b"InitiatorName=");
            let _ = one.stream.write_all(&out).await;
        }
        open.push(one);
    }
    undisturbed(&mut honest).await;
    assert!(server.notice().await.text.contains("too many connections"));
    let more = server.notices.try_recv();
    assert!(more.is_err(), "one notice for all, but then came {more:?}");
    let mut closed = 0;
    for one in &mut open[7..] {
        closed += usize::from(one.receive().await.is_none());
    }
    assert_eq!(closed, 93);
    drop(open);
    undisturbed(&mut honest).await;
    server.stop().await;
}

#[tokio::test]
async fn data_that_is_longer_than_declared_ends_its_session_and_no_other() {
    let server = Server::start(Limits::default()).await;
    let mut honest = Initiator::of(&server, "n2", 1).await;
    let mut liar = Initiator::logged_in(&server, 1).await;
    let mut header = liar.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    header.set_data_length(300 << 10);
    within(liar.stream.write_all(&header.0)).await.expect("sent");
    assert!(liar.receive().await.is_none(), "more than MaxRecvDataSegmentLength");
    // More than a request asked for: the command fails, its data is not written.
    let mut liar = Initiator::logged_in(&server, 1).await;
    let header = liar.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    liar.send(header, &[]).await;
    let (asked, _) = liar.expect(opcode::R2T).await;
    let more = liar.data_out(header.task_tag(), asked.u32(20), 0, 0, true);
    liar.send(more, &[7; 8192]).await;
    let (status, sense) = liar.status().await;
    assert_eq!((status, sense[4] & 0x0f, sense[14], sense[15]), (2, 0x0b, 0x0c, 0x0d));
    assert_eq!(liar.read(0, 8).await, Ok(vec![0; 4096]));
    undisturbed(&mut honest).await;
    server.stop().await;
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody() {
    let server = Server::start(Limits::default()).await;
    let mut honest = Initiator::of(&server, "n2", 1).await;
    let mut slow = Initiator::logged_in(&server, 1).await;
    // Four times 32 MiB that it never takes, and pings without end.
    for _ in 0..4 {
        let header = slow.command(0, 0xc0, &cdb10(0x28, 0, 0xffff), 0xffff * 512);
        slow.send(header, &[]).await;
    }
    let mut nop = slow.ping();
    let mut out = BytesMut::new();
    for _ in 0..64 {
        pdu::put(&mut out, &mut nop, slow.digests, &[0; 8192]);
    }
    // The target stops reading; what it took before, and what the sockets hold, is bounded.
    let mut taken = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), slow.stream.write(&out)).await
    {
        taken += written.expect("open");
        assert!(taken < 64 << 20, "it is read without bound");
    }
    undisturbed(&mut honest).await;
    server.stop().await;
}
