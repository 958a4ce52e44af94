use std::net::{Ipv4Addr, UdpSocket};

use proptest::prelude::*;

use super::fuzz::{MEMBER, NEIGHBOUR, SERVER, STRANGER, desk, socket};
use super::*;

const PROGRAM: &[u8] = &[0x5a; 3000];

/// Asks until there is an answer: a flood before may have filled the server's socket.
fn ask(socket: &UdpSocket, server: SocketAddr, request: &[u8], packet: &mut [u8]) -> Answer {
    for _ in 0..20 {
        socket.send_to(request, server).expect("sent");
        match socket.recv_from(packet) {
            Ok(answer) => return answer,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no answer to {request:?}")
}

/// Length of a datagram, and who sent it.
type Answer = (usize, SocketAddr);

/// Runs `client` beside a server, in a thread of its own.
fn beside_a_server<T: Send + 'static>(client: impl FnOnce(SocketAddr) -> T + Send + 'static) -> T {
    let dir = tempfile::tempdir().expect("temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        let listening = socket(SERVER);
        listening.set_nonblocking(true).expect("set");
        let address = listening.local_addr().expect("bound");
        let cancel = CancellationToken::new();
        let programs = Arc::new(Programs::of("snponly.efi", PROGRAM));
        let segment = "shop".parse().expect("name");
        let desk = Arc::new(desk(dir.path()));
        let server = tokio::spawn(serve(listening, segment, programs, desk, cancel.clone()));
        let result = tokio::task::spawn_blocking(move || client(address)).await.expect("no panic");
        cancel.cancel();
        server.await.expect("no panic").expect("served to the end");
        result
    })
}

fn read_request(name: &str) -> Vec<u8> {
    [b"\0\x01", name.as_bytes(), b"\0octet\0"].concat()
}

/// Fetches a file as RFC 1350 says, or the code of the error that came instead.
fn fetch(server: SocketAddr, from: Ipv4Addr, name: &str) -> Result<Vec<u8>, u8> {
    let socket = socket(from);
    let mut file = Vec::new();
    let mut packet = [0; 600];
    let (mut length, mut peer) = ask(&socket, server, &read_request(name), &mut packet);
    loop {
        match packet[..length] {
            [0, 3, high, low, ref data @ ..] => {
                socket.send_to(&[0, 4, high, low], peer).expect("sent");
                // One that was sent twice would make the file too long.
                file.extend_from_slice(data);
                if data.len() < 512 {
                    return Ok(file);
                }
            }
            [0, 5, _, code, ..] => return Err(code),
            ref other => panic!("neither data nor an error: {other:?}"),
        }
        (length, peer) = socket.recv_from(&mut packet).expect("the next block comes in time");
    }
}

#[test]
fn members_get_programs_and_nothing_else() {
    beside_a_server(|server| {
        assert_eq!(fetch(server, MEMBER, "snponly.efi").as_deref(), Ok(PROGRAM));
        assert_eq!(fetch(server, MEMBER, "/snponly.efi").as_deref(), Ok(PROGRAM));
        let (not_found, violation) = (1, 2);
        for path in ["../snponly.efi", "/../../etc/passwd", "x/../snponly.efi", "SNPONLY.EFI", ""] {
            assert_eq!(fetch(server, MEMBER, path), Err(not_found), "{path:?}");
        }
        assert_eq!(fetch(server, STRANGER, "snponly.efi"), Err(violation));
        // A write request.
        let socket = socket(MEMBER);
        let mut packet = [0; 600];
        let (length, _) = ask(&socket, server, b"\0\x02snponly.efi\0octet\0", &mut packet);
        assert_eq!(packet[..length.min(4)], [0, 5, 0, violation]);
    });
}

/// Datagrams of every kind: noise, and requests that were tampered with.
fn datagrams() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..600);
    let options = proptest::collection::vec("(blksize|windowsize|timeout|tsize|[a-z]{0,9})", 0..6);
    let request = (0_u8..7, "[ -~]{0,40}", options, "[0-9a-z-]{0,24}", any::<bool>()).prop_map(
        |(opcode, name, options, value, ends)| {
            let mut packet = vec![0, opcode];
            packet.extend_from_slice(name.as_bytes());
            packet.extend_from_slice(b"\0octet");
            for option in options {
                packet.extend_from_slice(format!("\0{option}\0{value}").as_bytes());
            }
            packet.extend(ends.then_some(0));
            packet
        },
    );
    proptest::collection::vec(prop_oneof![noise, request], 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn no_datagram_stalls_the_server(packets in datagrams()) {
        let file = beside_a_server(move |server| {
            let (member, stranger) = (socket(MEMBER), socket(STRANGER));
            for packet in packets {
                member.send_to(&packet, server).expect("sent");
                stranger.send_to(&packet, server).expect("sent");
            }
            fetch(server, MEMBER, "snponly.efi")
        });
        prop_assert_eq!(file.as_deref(), Ok(PROGRAM));
    }
}

/// Asks for a window of the program, and says nothing more; whether the server began.
fn ask_and_fall_silent(socket: &UdpSocket, server: SocketAddr) -> bool {
    let request = [&read_request("snponly.efi")[..], b"windowsize\x0016\0"].concat();
    let mut packet = [0; 600];
    let (length, _) = ask(socket, server, &request, &mut packet);
    match packet[..length] {
        [0, 6, ..] => true,
        [0, 5, 0, 0, ..] => false,
        ref other => panic!("neither the options nor a refusal: {other:?}"),
    }
}

#[test]
fn a_client_that_acknowledges_nothing_keeps_its_own_places_only_and_not_for_ever() {
    beside_a_server(|server| {
        let silent: Vec<UdpSocket> = (0..4 * MAX_EACH).map(|_| socket(MEMBER)).collect();
        let begun = silent.iter().filter(|socket| ask_and_fall_silent(socket, server)).count();
        assert_eq!(begun, MAX_EACH);
        assert_eq!(fetch(server, NEIGHBOUR, "snponly.efi").as_deref(), Ok(PROGRAM));
        assert_eq!(fetch(server, MEMBER, "snponly.efi"), Err(0), "there is a place left");
        let end = Instant::now() + Duration::from_secs(60);
        while fetch(server, MEMBER, "snponly.efi").is_err() {
            assert!(Instant::now() < end, "no place becomes free");
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}
