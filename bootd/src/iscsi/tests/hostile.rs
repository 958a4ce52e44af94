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
