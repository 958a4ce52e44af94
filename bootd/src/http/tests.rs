use proptest::prelude::*;

use super::fuzz::{MEMBER, STRANGER, exchange, site};
use super::*;

async fn status(path: &str, peer: [u8; 4]) -> String {
    let dir = tempfile::tempdir().expect("temporary directory");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = exchange(site(dir.path()), peer, request.as_bytes()).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn paths_are_for_members_alone() {
    let (member, stranger) = (MEMBER, STRANGER);
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
    let answer = exchange(site(dir.path()), MEMBER, request.as_bytes()).await;
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
            exchange(site(dir.path()), MEMBER, &bytes).await;
            exchange(site(dir.path()), MEMBER, &request).await;
        });
    }
}
