//! Data in both directions, digests, and the order of commands.

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;

use super::*;

#[tokio::test]
async fn all_kinds_of_write_data_arrive() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    // Immediate data alone.
    let data = pattern(4096, 1);
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 0, 8), 4096);
    initiator.send(header, &data).await;
    assert_eq!(initiator.status().await.0, 0);
    assert_eq!(initiator.read(0, 8).await, Ok(data));
    // Immediate, unsolicited, then four bursts that are asked for.
    let data = pattern(256 << 10, 2);
    let header = initiator.command(0, 0x20, &cdb10(0x2a, 8, 512), 256 << 10);
    let tag = header.task_tag();
    initiator.send(header, &data[..4096]).await;
    let part = initiator.data_out(tag, NO_TAG, 0, 4096, false);
    initiator.send(part, &data[4096..8192]).await;
    let part = initiator.data_out(tag, NO_TAG, 1, 8192, true);
    initiator.send(part, &data[8192..16384]).await;
    assert_eq!(initiator.serve_r2ts(&data).await, (0, 4));
    assert_eq!(initiator.read(8, 512).await, Ok(data));
    // Everything asked for, with FUA.
    let data = pattern(100 << 10, 3);
    let mut cdb = cdb10(0x2a, 3, 200);
    cdb[1] = 0x08;
    let header = initiator.command(0, 0xa0, &cdb, 100 << 10);
    initiator.send(header, &[]).await;
    assert_eq!(initiator.serve_r2ts(&data).await, (0, 2));
    assert_eq!(initiator.read(3, 200).await, Ok(data));
    server.stop().await;
}

#[tokio::test]
async fn more_data_than_the_buffers_hold_is_sent_to_a_slow_reader() {
    const BLOCKS: u32 = 8192;
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let data = pattern(BLOCKS as usize * 512, 4);
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 64, BLOCKS as u16), BLOCKS * 512);
    initiator.send(header, &[]).await;
    assert_eq!(initiator.serve_r2ts(&data).await.0, 0);
    // Several at once, so that the target has much more to send than a socket takes.
    for _ in 0..4 {
        let header = initiator.command(0, 0xc0, &cdb10(0x28, 64, BLOCKS as u16), BLOCKS * 512);
        initiator.send(header, &[]).await;
    }
    for _ in 0..4 {
        let mut all = Vec::new();
        loop {
            let (header, part) = initiator.expect(opcode::DATA_IN).await;
            assert_eq!(header.u32(40) as usize, all.len(), "buffer offset");
            all.extend(part);
            if header.0[1] & 1 != 0 {
                break;
            }
        }
        assert!(all == data, "the data differs");
    }
    server.stop().await;
}

#[tokio::test]
async fn digests_are_served_when_they_are_asked_for() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::connect(&server, 1).await;
    initiator.operational = "HeaderDigest=CRC32C,None\0DataDigest=CRC32C\0InitialR2T=Yes\0";
    assert_eq!(initiator.log_in().await, 0);
    assert!(initiator.digests.header);
    let data = pattern(20 << 10, 9);
    let header = initiator.command(0, 0xa0, &cdb10(0x2a, 64, 40), 20 << 10);
    initiator.send(header, &data[..8192]).await;
    assert_eq!(initiator.serve_r2ts(&data).await.0, 0);
    assert_eq!(initiator.read(64, 40).await, Ok(data));
    // A PDU whose digest is wrong ends the connection: there is no recovery at level 0.
    let mut broken = BytesMut::new();
    let mut header = initiator.command(0, 0xc0, &cdb10(0x28, 0, 1), 512);
    pdu::put(&mut broken, &mut header, initiator.digests, &[]);
    broken[HEADER] ^= 1;
    within(initiator.stream.write_all(&broken)).await.expect("sent");
    assert!(initiator.receive().await.is_none());
    server.stop().await;
}

#[tokio::test]
async fn commands_are_done_in_order_and_only_within_the_window() {
    let server = Server::start(Limits::default()).await;
    let mut initiator = Initiator::logged_in(&server, 1).await;
    let first = initiator.command(0, 0x80, &[0; 6], 0);
    let second = initiator.command(0, 0x80, &[0; 6], 0);
    let mut beyond = initiator.command(0, 0x80, &[0; 6], 0);
    beyond.set_u32(24, second.u32(24) + 500);
    initiator.send(beyond, &[]).await;
    initiator.send(second, &[]).await;
    initiator.send(first, &[]).await;
    let (one, _) = initiator.expect(opcode::SCSI_RESPONSE).await;
    let (two, _) = initiator.expect(opcode::SCSI_RESPONSE).await;
    assert_eq!((one.task_tag(), two.task_tag()), (first.task_tag(), second.task_tag()));
    let window = two.u32(32).wrapping_sub(two.u32(28)) + 1;
    assert!(window >= 64, "{window}");
    assert_eq!(two.u32(28), second.u32(24) + 1);
    server.stop().await;
}
