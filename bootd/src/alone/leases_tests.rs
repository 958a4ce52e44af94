use proptest::prelude::*;

use super::*;

const START: u64 = 1_000_000_000;

fn mac(n: u32) -> MacAddr {
    let [a, b, c, d] = n.to_be_bytes();
    MacAddr::new([0x52, 0x54, a, b, c, d]).expect("MAC")
}

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

fn table(first: u8, last: u8) -> Leases {
    let pool = Pool { first: address(first), last: address(last) };
    Leases::new(&[pool], HashSet::from([address(first)]), START)
}

fn leased(taken: Taken) -> Lease {
    match taken {
        Taken::Lease(lease) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

#[test]
fn a_client_keeps_its_address_through_all_states() {
    let mut leases = table(1, 20);
    let first = leases.offer(mac(1), None, START).expect("an address");
    assert_ne!(first, address(1), "it is reserved");
    assert_eq!(leases.offer(mac(1), None, START), Some(first), "a repeated DISCOVER");
    assert_eq!(leases.held(mac(1), START), None, "an offer is no lease");
    let lease = leased(leases.take(mac(1), first, 60, None, START));
    assert_eq!((lease.address, lease.expires), (first, START / 1000 + 60));
    // Renewing, and another address by INIT-REBOOT that is somebody else's.
    let other = leases.offer(mac(2), Some(first), START).expect("an address");
    assert_ne!(other, first);
    leased(leases.take(mac(2), other, 60, None, START));
    assert_eq!(leases.take(mac(2), first, 60, None, START), Taken::Refused);
    assert_eq!(leases.take(mac(1), address(99), 60, None, START), Taken::Refused);
    let later = START + 50_000;
    assert_eq!(leased(leases.take(mac(1), first, 60, None, later)).expires, later / 1000 + 60);
    // Over, and still its own while there are others.
    let over = later + 61_000;
    assert_eq!(leases.held(mac(1), over), None);
    assert_eq!(leases.offer(mac(1), None, over), Some(first));
    // Released: likewise.
    leased(leases.take(mac(1), first, 60, None, over));
    assert!(leases.release(mac(1), address(9), over).is_none());
    assert!(leases.release(mac(1), first, over).is_some());
    assert_eq!(leases.held(mac(1), over), None);
    assert_eq!(leases.offer(mac(1), None, over), Some(first));
}

#[test]
fn a_declined_address_rests_and_only_its_client_may_decline() {
    let mut leases = table(1, 4);
    let first = leases.offer(mac(1), None, START).expect("an address");
    leased(leases.take(mac(1), first, 60, None, START));
    assert!(leases.decline(mac(2), first, START).is_none());
    assert!(leases.decline(mac(1), first, START).is_some());
    let second = leases.offer(mac(1), None, START).expect("an address");
    assert_ne!(second, first);
    assert_eq!(leases.take(mac(1), first, 60, None, START), Taken::Refused);
    leased(leases.take(mac(1), first, 60, None, START + BUSY_MS));
}

#[test]
fn a_flood_of_discovers_takes_no_address_from_anybody() {
    let mut leases = table(1, 11);
    let mut mine = None;
    for n in 0..10_000_u32 {
        let now = START + u64::from(n) / 10;
        assert!(leases.offer(mac(1000 + n), None, now).is_some(), "the pool ran dry at {n}");
        if n == 5000 {
            mine = leases.offer(mac(1), None, now);
        }
    }
    // Its offer was given to a hundred others meanwhile, none of which took it.
    let mine = mine.expect("an offer");
    leased(leases.take(mac(1), mine, 60, None, START + 1000));
    assert!(leases.offers.len() <= 10 && leases.offered.len() <= 10);
    assert!(leases.order.len() <= 10 && leases.ready.len() <= 10);
}

#[test]
fn new_leases_are_limited_per_port_and_per_subnet() {
    let pool = Pool { first: [10, 1, 0, 0].into(), last: [10, 1, 255, 255].into() };
    let mut leases = Leases::new(&[pool], HashSet::new(), START);
    let begin = |leases: &mut Leases, n, port: Option<&[u8]>, now| {
        let address = leases.offer(mac(n), None, now).expect("an address");
        leases.take(mac(n), address, 60, port, now) != Taken::Later
    };
    let one = (0..1000).filter(|n| begin(&mut leases, *n, Some(b"port1"), START)).count();
    assert_eq!(one, PORT_BURST as usize);
    assert!(begin(&mut leases, 2000, Some(b"port2"), START), "another port has its own");
    let all = (3000..9000).filter(|n| begin(&mut leases, *n, None, START)).count();
    assert_eq!(all, LINK_BURST as usize - one - 1);
    let next = (9000..10_000).filter(|n| begin(&mut leases, *n, None, START + 1000)).count();
    assert_eq!(next, LINK_RATE as usize);
    // Who has a lease extends it whatever others do.
    let held = leases.leases.values().next().copied().expect("a lease");
    leased(leases.take(held.mac, held.address, 60, None, START + 1000));
}

#[test]
fn probed_addresses_are_given_first_and_used_ones_not_at_all() {
    let mut leases = table(1, 9);
    let probe = leases.probe_next(3, START);
    assert_eq!(probe.len(), 3);
    leases.probed(probe[0], true, START);
    leases.probed(probe[2], false, START);
    assert_eq!(leases.offer(mac(1), None, START), Some(probe[2]));
    for n in 2..20 {
        assert_ne!(leases.offer(mac(n), None, START), Some(probe[0]));
    }
}

#[test]
fn the_address_that_ran_out_first_is_given_away_first() {
    let mut leases = table(1, 4);
    for n in 1..=3 {
        let address = leases.offer(mac(n), None, START).expect("an address");
        leased(leases.take(mac(n), address, 60 * n, None, START));
    }
    assert_eq!(leases.offer(mac(9), None, START), None, "all are leased");
    let second = leases.held(mac(2), START).expect("a lease").address;
    let first = leases.held(mac(1), START).expect("a lease").address;
    let over = START + 130_000;
    assert_eq!(leases.offer(mac(9), None, over), Some(first));
    leased(leases.take(mac(9), first, 60, None, over));
    assert_eq!(leases.offer(mac(1), None, over), Some(second), "its own is gone");
}

proptest! {
    /// Whatever clients do, no address is leased twice and none outside the pool.
    #[test]
    fn no_address_has_two_owners(
        steps in proptest::collection::vec((0..5_u8, 1..8_u32, 1..9_u8, 0..90_u64), 1..200),
    ) {
        let mut leases = table(1, 7);
        let mut now = START;
        for (what, client, host, pass) in steps {
            now += pass * 1000;
            match what {
                0 => drop(leases.offer(mac(client), Some(address(host)), now)),
                1 => drop(leases.offer(mac(client), None, now).map(|a| leases.take(mac(client), a, 60, None, now))),
                2 => drop(leases.take(mac(client), address(host), 60, None, now)),
                3 => drop(leases.release(mac(client), address(host), now)),
                _ => drop(leases.decline(mac(client), address(host), now)),
            }
            let valid: Vec<_> = (1..8).filter_map(|n| leases.held(mac(n), now)).collect();
            let distinct: HashSet<_> = valid.iter().map(|lease| lease.address).collect();
            prop_assert_eq!(distinct.len(), valid.len());
            prop_assert!(distinct.iter().all(|a| (address(2)..=address(7)).contains(a)));
            prop_assert_eq!(leases.leases.len(), leases.owners.len());
            prop_assert_eq!(leases.leases.len(), leases.by_expiry.len());
        }
    }
}
