use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::*;
use crate::boot::{DeskParts, Presence, Records};
use crate::desired::Holder;
use crate::events::Events;
use crate::volume::ImageStore;

fn site(dir: &std::path::Path) -> Site {
    let (events, _) = Events::channel(1);
    let desired = Arc::new(Holder::open(dir).expect("holder"));
    desired.apply(&crate::test_support::state()).expect("good");
    let desk = Desk::new(DeskParts {
        desired,
        records: Arc::new(Records::open(dir).expect("records")),
        presence: Arc::new(Presence::new()),
        events,
        images: Arc::new(ImageStore::open(dir.join("images"))),
        alone: false,
        certificate: String::new(),
        nudge: Arc::new(Notify::new()),
    });
    let programs = Arc::new(Programs::of("snponly.efi", b"MZ"));
    Site { segment: "shop".parse().expect("name"), desk: Arc::new(desk), clerk: None, programs }
}

/// What a caller at `peer` gets for these bytes.
async fn exchange(site: Site, peer: [u8; 4], bytes: &[u8]) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let served = tokio::spawn(connection(server, peer.into(), router(site)));
    client.write_all(bytes).await.expect("written");
    client.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("read");
    served.await.expect("no panic");
    answer
}

async fn status(path: &str, peer: [u8; 4]) -> String {
    let dir = tempfile::tempdir().expect("temporary directory");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = exchange(site(dir.path()), peer, request.as_bytes()).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn paths_are_for_members_alone() {
    let (member, stranger) = ([10, 20, 1, 10], [10, 20, 1, 99]);
    assert_eq!(status("/ipxe/snponly.efi", member).await, "HTTP/1.1 200 OK");
    assert_eq!(status("/ipxe/snponly.efi", stranger).await, "HTTP/1.1 403 Forbidden");
    assert_eq!(status("/ipxe/other.efi", member).await, "HTTP/1.1 404 Not Found");
    // Its window was never opened here.
    assert_eq!(status("/boot/script", member).await, "HTTP/1.1 403 Forbidden");
    assert_eq!(status("/boot/node.img", member).await, "HTTP/1.1 403 Forbidden");
    let other = ImageVersion::of(b"other");
    assert_eq!(status(&format!("/image/{other}/kernel"), member).await, "HTTP/1.1 403 Forbidden");
    assert_eq!(status("/image/..%2f..%2fetc/kernel", member).await, "HTTP/1.1 404 Not Found");
    assert_eq!(status("/", member).await, "HTTP/1.1 404 Not Found");
}

#[tokio::test]
async fn a_long_header_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let request = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(4 * MAX_HEADER));
    let answer = exchange(site(dir.path()), [10, 20, 1, 10], request.as_bytes()).await;
    assert!(answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_panic(
        path in "[ -~]{0,60}",
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        runtime.block_on(async {
            let dir = tempfile::tempdir().expect("temporary directory");
            let mut request = format!("GET /{path} HTTP/1.1\r\n").into_bytes();
            request.extend_from_slice(&bytes);
            exchange(site(dir.path()), [10, 20, 1, 10], &bytes).await;
            exchange(site(dir.path()), [10, 20, 1, 10], &request).await;
        });
    }
}
