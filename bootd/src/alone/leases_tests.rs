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
        Taken::Lease(lease, _) => lease,
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

#[test]
fn a_client_that_takes_another_address_gives_up_the_first_one_for_good() {
    let mut leases = table(1, 20);
    let first = leased(leases.take(mac(1), address(5), 60, None, START));
    let again = leases.take(mac(1), address(5), 60, None, START);
    assert_eq!(again, Taken::Lease(first, None), "the same again ends nothing");
    let Taken::Lease(second, Some(ended)) = leases.take(mac(1), address(6), 60, None, START) else {
        panic!("the first lease is not ended");
    };
    assert_eq!((ended.address, ended.mac, ended.expires), (first.address, mac(1), 0));
    assert_eq!(leases.held(mac(1), START), Some(second));
}

#[test]
fn renewals_leave_no_trace() {
    let mut leases = table(1, 4);
    for n in 1..=3 {
        let address = leases.offer(mac(n), None, START).expect("an address");
        leased(leases.take(mac(n), address, 60, None, START));
    }
    let before = leases.fresh.len();
    for _ in 0..1000 {
        for lease in leases.all().collect::<Vec<_>>() {
            leased(leases.take(lease.mac, lease.address, 60, None, START));
            leases.restore(lease);
        }
    }
    assert_eq!(leases.fresh.len(), before);
    assert_eq!((leases.leases.len(), leases.owners.len(), leases.by_expiry.len()), (3, 3, 3));
}

#[test]
fn addresses_that_are_kept_hide_no_free_one_behind_them() {
    let mut leases = table(1, 201);
    for n in 1..=200 {
        let given = leases.offer(mac(n), None, START).expect("an address");
        // The first to run out are kept for their clients, which run without a lease.
        let lease = leased(leases.take(mac(n), given, 60 + n, None, START));
        if n < 200 {
            leases.reserve(lease.address, mac(n));
        }
    }
    let last = leases.held(mac(200), START).expect("a lease").address;
    let over = START + 300_000;
    assert_eq!(leases.offer(mac(999), None, over), Some(last));
    assert_eq!(leases.by_expiry.len(), 0, "it is offered, the others are kept");
    // Its offer runs out, and one of the others is kept no more.
    let kept = leases.held(mac(7), START).expect("a lease").address;
    leases.unreserve(kept);
    assert_eq!(leases.offer(mac(998), None, over), Some(kept));
    assert_eq!(leases.offer(mac(997), None, over + OFFER_MS), Some(kept), "it ran out first");
}

#[test]
fn a_lease_lives_on_while_its_client_is_known_to_be_there() {
    let mut leases = table(1, 20);
    let lease = leased(leases.take(mac(1), address(5), 60, None, START));
    assert_eq!(leases.extend(mac(1), address(5), 60, START), None, "it is new");
    let later = START + 31_000;
    let longer = leases.extend(mac(1), address(5), 60, later).expect("half of it is over");
    assert_eq!(longer.expires, lease.expires + 31);
    let over = START + 1_000_000;
    assert!(leases.extend(mac(1), address(5), 60, over).is_some(), "and when all of it is");
    assert_eq!(leases.extend(mac(2), address(5), 60, over), None, "it is another's");
    assert_eq!(leases.extend(mac(1), address(6), 60, over), None, "it has another");
}

#[test]
fn another_file_carries_over_what_is_known_beside_leases() {
    let mut old = table(1, 20);
    let mine = old.offer(mac(1), None, START).expect("an address");
    leased(old.take(mac(1), mine, 60, Some(b"p1"), START));
    assert!(old.decline(mac(1), mine, START).is_some());
    for n in 10..10 + PORT_BURST - 1 {
        let address = old.offer(mac(n), None, START).expect("an address");
        leased(old.take(mac(n), address, 60, Some(b"p1"), START));
    }
    let leases: Vec<Lease> = old.all().collect();
    let mut new = table(1, 30);
    new.carry(old);
    assert!(leases.iter().all(|lease| new.restore(*lease)));
    assert!(!new.restore(Lease { mac: mac(5), address: address(200), expires: u64::MAX }));
    assert_eq!(new.take(mac(2), mine, 60, None, START), Taken::Refused, "somebody uses it");
    assert_eq!(new.take(mac(2), address(25), 60, Some(b"p1"), START), Taken::Later);
    leased(new.take(mac(2), address(25), 60, Some(b"p2"), START));
}

fn keep(kept: &mut HashMap<Ipv4Addr, Lease>, list: &[Option<Lease>]) {
    kept.extend(list.iter().flatten().map(|lease| (lease.address, *lease)));
}

proptest! {
    /// Whatever clients do, no address is leased twice and none outside the pool; nor after a restart
    /// from what was kept, or another file.
    #[test]
    fn no_address_has_two_owners(
        steps in proptest::collection::vec((0..10_u8, 1..8_u32, 1..9_u8, 0..90_u64), 1..200),
    ) {
        let mut leases = table(1, 7);
        // What the ledger holds: the newest record of each address.
        let mut kept: HashMap<Ipv4Addr, Lease> = HashMap::new();
        let mut now = START;
        for (what, client, host, pass) in steps {
            now += pass * 1000;
            match what {
                0 => drop(leases.offer(mac(client), Some(address(host)), now)),
                1 | 2 => {
                    let wanted = if what == 2 { Some(address(host)) } else { leases.offer(mac(client), None, now) };
                    let taken = wanted.map(|a| leases.take(mac(client), a, 60, None, now));
                    if let Some(Taken::Lease(lease, ended)) = taken {
                        keep(&mut kept, &[Some(lease), ended]);
                    }
                }
                3 => keep(&mut kept, &[leases.release(mac(client), address(host), now)]),
                4 => keep(&mut kept, &[leases.decline(mac(client), address(host), now)]),
                5 => keep(&mut kept, &[leases.extend(mac(client), address(host), 60, now)]),
                6 => leases.reserve(address(host), mac(client)),
                7 => leases.unreserve(address(host)),
                8 => {
                    // A restart: who held what holds it, and nobody anything else.
                    let before: Vec<_> = (1..8).map(|n| leases.held(mac(n), now)).collect();
                    leases = table(1, 7);
                    for lease in kept.values().filter(|lease| lease.expires > 0) {
                        leases.restore(*lease);
                    }
                    let after: Vec<_> = (1..8).map(|n| leases.held(mac(n), now)).collect();
                    prop_assert_eq!(after, before);
                }
                _ => {
                    // Another file with the same pool.
                    let reserved: Vec<_> = leases.kept().collect();
                    let all: Vec<Lease> = leases.all().collect();
                    let older = std::mem::replace(&mut leases, table(1, 7));
                    leases.carry(older);
                    for (address, mac) in reserved {
                        leases.reserve(address, mac);
                    }
                    for lease in all {
                        // Given to another meanwhile: the clerk remembers it, this table does not.
                        if !leases.restore(lease) {
                            kept.remove(&lease.address);
                        }
                    }
                }
            }
            let valid: Vec<_> = (1..8).filter_map(|n| leases.held(mac(n), now)).collect();
            let distinct: HashSet<_> = valid.iter().map(|lease| lease.address).collect();
            prop_assert_eq!(distinct.len(), valid.len());
            prop_assert!(distinct.iter().all(|a| (address(2)..=address(7)).contains(a)));
            prop_assert_eq!(leases.leases.len(), leases.owners.len());
            let listed = leases.leases.values().filter(|lease| {
                !leases.reserved.contains_key(&lease.address) && !leases.offered.contains_key(&lease.address)
            });
            let listed: BTreeSet<_> = listed.map(|lease| (lease.expires, lease.address)).collect();
            prop_assert_eq!(&listed, &leases.by_expiry);
            prop_assert_eq!(leases.offers.len(), leases.offered.len());
        }
    }
}
