//! A client that asks for transfers without end and acknowledges none.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use croft_test_support::namespace::sh;

use crate::FILE;
use crate::client::{self, BIOS, Client};
use crate::site::{Site, enter, until};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
const HOSTILE: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 50);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 51);

/// Ports that the hostile client asks from, and requests per second. Each that is refused may be asked
/// again from the same port.
const PORTS: usize = 512;
const PER_SECOND: f64 = 10_000.0;

/// Peak of resident memory, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("bootd runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number")
}

fn open_files(pid: u32) -> usize {
    Path::new(&format!("/proc/{pid}/fd")).read_dir().expect("bootd runs").count()
}

/// Asks until told to stop, for the largest blocks, windows and timeouts that there are.
fn ask_without_end(stop: &AtomicBool) -> u64 {
    let request =
        b"\0\x01undionly.kpxe\0octet\0blksize\x0065464\0windowsize\x0065535\0timeout\x00255\0";
    let sockets: Vec<UdpSocket> =
        (0..PORTS).map(|_| UdpSocket::bind((HOSTILE, 0)).expect("bound")).collect();
    let (start, mut sent) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_secs_f64() * PER_SECOND;
        while (sent as f64) < due {
            let socket = &sockets[sent as usize % PORTS];
            socket.send_to(request, SocketAddrV4::new(SERVER, 69)).expect("sent");
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

#[test]
fn a_client_that_asks_without_end_keeps_no_file_from_others_and_costs_no_memory() {
    if !enter("tftp::a_client_that_asks_without_end_keeps_no_file_from_others_and_costs_no_memory")
    {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut site = Site::new(dir.path(), FILE);
    std::fs::write(dir.path().join("ipxe/undionly.kpxe"), vec![7; 4 << 20]).expect("written");
    site.start();
    let node = Client::new("node0", [0x52, 0x54, 0, 0, 7, 1]);
    until("the segment is served", || node.dhcp(1, BIOS));
    sh(&format!("ip addr add {HOSTILE}/24 dev node0 && ip addr add {NEIGHBOUR}/24 dev node0"));
    let fetch = || {
        let start = Instant::now();
        assert_eq!(client::tftp(NEIGHBOUR, SERVER, "snponly.efi"), b"this is snponly.efi");
        start.elapsed()
    };
    fetch();
    let (before, files) = (peak_kib(site.pid()), open_files(site.pid()));
    let stop = AtomicBool::new(false);
    let (mut times, most, sent) = std::thread::scope(|scope| {
        let hostile = scope.spawn(|| ask_without_end(&stop));
        let (mut times, mut most) = (Vec::new(), 0);
        let start = Instant::now();
        // Longer than it takes to give up the transfers that began first.
        while start.elapsed() < Duration::from_secs(8) {
            times.push(fetch());
            most = most.max(open_files(site.pid()));
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, Ordering::Relaxed);
        (times, most, hostile.join().expect("no panic"))
    });
    times.sort();
    let median = times[times.len() / 2];
    let grown = peak_kib(site.pid()) - before;
    println!(
        "{sent} requests: median {median:?} of {times:?}, {grown} KiB more, {files} files, then {most}"
    );
    assert!(sent > 8 * PORTS as u64, "only {sent} requests in all");
    // A request or an answer that is lost in the flood is sent again after a second.
    assert!(median < Duration::from_secs(2), "another client waited for {times:?}");
    // A window is 23 KiB; eight of them are nothing beside what the allocator takes anyway.
    assert!(grown < 16 << 10, "{grown} KiB more");
    // Its eight transfers, the neighbour's, and an error or two on their way.
    assert!(most < files + 32, "{files} open files became {most}");
}
