//! Fuzz target: what comes over an HTTP connection. And the site that tests ask, too.

use std::sync::LazyLock;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::events::Events;
use crate::test_support::{self, RUNTIME};

/// What the boot program holds.
const PROGRAM: &[u8] = b"MZ, and the rest of a boot program";

/// A member of the farm whose segment it is, and an address of nobody's.
pub(super) const MEMBER: [u8; 4] = [10, 20, 1, 10];
pub(super) const STRANGER: [u8; 4] = [10, 20, 1, 99];

/// A site over the desired state of the tests.
pub(super) fn site(dir: &std::path::Path) -> Site {
    let parts = test_support::desk_parts(dir, Events::channel(1).0);
    parts.desired.apply(&test_support::state()).expect("good");
    let desk = Arc::new(Desk::new(parts));
    let programs = Arc::new(Programs::of("snponly.efi", PROGRAM));
    Site { segment: "shop".parse().expect("name"), desk, clerk: None, programs }
}

/// What a caller at `peer` gets for these bytes.
pub(super) async fn exchange(site: Site, peer: [u8; 4], bytes: &[u8]) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let served = tokio::spawn(connection(server, peer.into(), router(site)));
    client.write_all(bytes).await.expect("written");
    client.shutdown().await.expect("ended");
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("read");
    served.await.expect("no panic");
    answer
}

/// A site whose directory is gone: nothing that can be asked here needs it any more.
static SITE: LazyLock<Site> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("temporary directory");
    site(dir.path())
});

/// The bytes of a connection, asked by a member and by a stranger.
pub fn connection_bytes(data: &[u8]) -> bool {
    let [member, stranger] = [MEMBER, STRANGER].map(|peer| {
        let answer = RUNTIME.block_on(exchange(SITE.clone(), peer, data));
        sound(&answer, data);
        answer
    });
    let has = |answer: &[u8]| answer.windows(PROGRAM.len()).any(|window| window == PROGRAM);
    assert!(!has(&stranger), "a stranger got a boot program");
    has(&member)
}

/// Answers, if there are any, in HTTP and in proportion; and nothing failed within.
fn sound(answer: &[u8], data: &[u8]) {
    assert!(answer.len() <= 300 + 20 * data.len(), "{} bytes", answer.len());
    if answer.is_empty() {
        return;
    }
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let status = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "));
    let status: u16 = status.and_then(|s| s.get(..3)?.parse().ok()).expect("a status line");
    assert!(matches!(status, 200 | 400..=499), "{line}");
}
