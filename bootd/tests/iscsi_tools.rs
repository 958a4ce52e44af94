//! The real program, `croft-bootd target`, with other people's initiators: libiscsi's tools and
//! QEMU's block layer (Debian packages libiscsi-bin, qemu-utils and qemu-block-extra). Its whole
//! conformance suite is in `conformance.rs`.

mod tools;

use tools::{Server, tool};

#[test]
fn the_tools_find_the_target_and_its_unit() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &[]);
    let portal = server.url.rsplitn(3, '/').last().expect("a portal");
    let (list, _) = tool("iscsi-ls", &["-s", portal]);
    assert!(list.contains("iqn.2026-11.internal.croft:test"), "{list}");
    assert!(list.contains("DIRECT_ACCESS"), "{list}");
    let (inquiry, _) = tool("iscsi-inq", &[&server.url]);
    assert!(inquiry.contains("CROFT"), "{inquiry}");
}

#[test]
fn a_read_only_unit_is_write_protected() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &["--read-only"]);
    let (output, _) = tool("iscsi-test-cu", &["-d", "-v", "-t", "ALL.ReadOnly", &server.url]);
    assert!(output.contains("Test: ReadOnlySBC ...passed"), "{output}");
    assert!(!output.contains("not write-protected"), "{output}");
}

#[test]
fn a_killed_server_has_lost_no_answered_write() {
    let dir = tempfile::tempdir().expect("directory");
    let server = Server::start(dir.path(), &[]);
    let write = [
        "-f",
        "raw",
        "-t",
        "none",
        "-c",
        "write -P 0x11 0 1M",
        "-c",
        "write -P 0x22 4096 512",
        "-c",
        "flush",
        "-c",
        "write -P 0x33 64k 3k",
        "-c",
        "write -z 512k 64k",
        &server.url,
    ];
    let (output, ok) = tool("qemu-io", &write);
    assert!(ok, "{output}");
    drop(server);
    let server = Server::start(dir.path(), &["--keep"]);
    let read = [
        "-f",
        "raw",
        "-c",
        "read -P 0x11 0 4k",
        "-c",
        "read -P 0x22 4096 512",
        "-c",
        "read -P 0x11 4608 3584",
        "-c",
        "read -P 0x33 64k 3k",
        "-c",
        "read -P 0 512k 64k",
        "-c",
        "read -P 0x11 576k 448k",
        "-c",
        "read -P 0 1M 1M",
        &server.url,
    ];
    let (output, ok) = tool("qemu-io", &read);
    assert!(ok && !output.contains("verification failed"), "{output}");
    assert_eq!(output.matches("read ").count(), 7, "{output}");
}
