//! bootd killed again and again while many machines boot.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use croft_test_support::initiator::{Account, Session};
use croft_test_support::namespace::sh;
use nix::sys::signal::Signal;

use crate::client::{self, BIOS, Client, IPXE};
use crate::site::{Site, until};
use crate::{FILE, SERVER, with};

const MACHINES: u8 = 20;
const BOOTD: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
/// Between the starts of two machines, and of two steps of one.
const PAUSE: Duration = Duration::from_millis(150);

/// What a machine has when it is up.
#[derive(Debug)]
struct Booted {
    address: Ipv4Addr,
    target: String,
    /// How often it began anew.
    restarts: usize,
}

/// One machine: firmware, iPXE, and the operating system's login.
struct Machine<'a> {
    /// Path of its kernel.
    kernel: &'a str,
    client: Client,
    /// Once it has one.
    address: Option<Ipv4Addr>,
    runtime: tokio::runtime::Runtime,
}

impl Machine<'_> {
    /// A boot as the firmware, iPXE and the boot script have it. None: a step failed, and the script
    /// or the firmware begins anew.
    fn try_boot(&mut self) -> Option<Account> {
        let ask = |kind: u8, options: &[(u8, &[u8])]| {
            std::thread::sleep(PAUSE);
            self.client.dhcp(kind, options)
        };
        let offered = ask(1, BIOS)?.address.octets();
        let wanted = [(50, &offered[..]), SERVER];
        let ack = ask(3, &with(BIOS, &wanted)).filter(|answer| answer.kind == 5)?;
        assert_eq!(ack.file, "undionly.kpxe");
        match self.address {
            Some(address) => assert_eq!(ack.address, address, "it lost its address"),
            None => {
                sh(&format!("ip addr add {}/24 dev node0", ack.address));
                self.address = Some(ack.address);
            }
        }
        let own = ack.address;
        client::try_tftp(own, BOOTD, "undionly.kpxe").ok()?;
        ask(1, IPXE)?;
        let ack = ask(3, &with(IPXE, &wanted)).filter(|answer| answer.kind == 5)?;
        assert_eq!(ack.address, own);
        let get = |path: &str| {
            std::thread::sleep(PAUSE);
            let (status, body) = client::try_get_from(own, BOOTD, path).ok()?;
            assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
            Some(body)
        };
        let script = get("/boot/script")?;
        let firmware = Account::in_script(&script).expect("a login in the script");
        self.read(&firmware, 1)?;
        get(self.kernel)?;
        let system = Account::in_initrd(&get("/boot/node.img")?).expect("a login in the initrd");
        assert_eq!(firmware.target, system.target);
        Some(system)
    }

    /// Logs in and reads the first block of the disk.
    fn read(&self, account: &Account, isid: u8) -> Option<Vec<u8>> {
        std::thread::sleep(PAUSE);
        let own = self.address.expect("it has one");
        self.runtime.block_on(async {
            let mut session = Session::log_in(account, own, isid).await.ok()?;
            session.read(0, 0).await.ok()
        })
    }

    /// Boots, however often it takes, and waits for the disk as an operating system does.
    fn boot(mut self) -> Booted {
        let mut restarts = 0;
        let account = until("a machine boots", || {
            let account = self.try_boot();
            restarts += usize::from(account.is_none());
            account
        });
        let block = until("its disk is there", || self.read(&account, 2));
        assert_eq!(block, [7; 512], "that is not the image's first block");
        Booted { address: self.address.expect("it has one"), target: account.target, restarts }
    }
}

#[test]
fn kills_in_the_midst_of_twenty_boots_lose_none() {
    let Some((_dir, mut site)) =
        Site::inside("kills::kills_in_the_midst_of_twenty_boots_lose_none", FILE)
    else {
        return;
    };
    site.start();
    until("the segment is served", || Client::new("node0", [0, 0x11, 0, 0, 0, 1]).dhcp(1, &[]));
    let kernel = format!("/image/{}/kernel", site.image);
    let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut kills = 0;
    let booted: Vec<Booted> = std::thread::scope(|scope| {
        let machine = |number: u8| {
            let (kernel, begun, done) = (&kernel, &begun, &done);
            move || {
                std::thread::sleep(PAUSE * u32::from(number));
                begun.fetch_add(1, Ordering::Relaxed);
                let client = Client::new("node0", [0x52, 0x54, 0, 0, 9, number]);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.expect("runtime");
                let booted = Machine { kernel, client, address: None, runtime }.boot();
                done.fetch_add(1, Ordering::Relaxed);
                booted
            }
        };
        let machines: Vec<_> = (0..MACHINES).map(|number| scope.spawn(machine(number))).collect();
        let start = Instant::now();
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(1100));
            let under_way = begun.load(Ordering::Relaxed) - done.load(Ordering::Relaxed);
            if under_way > 0 {
                kills += 1;
            }
            site.end(Signal::SIGKILL);
            site.start();
        }
        println!("{kills} kills among boots within {:?}", start.elapsed());
        machines.into_iter().map(|machine| machine.join().expect("it booted")).collect()
    });
    assert_eq!(kills, 4, "bootd was killed when nobody booted");
    let addresses: BTreeSet<_> = booted.iter().map(|booted| booted.address).collect();
    let targets: BTreeSet<_> = booted.iter().map(|booted| &booted.target).collect();
    assert_eq!((addresses.len(), targets.len()), (20, 20), "{booted:#?}");
    let met = booted.iter().filter(|booted| booted.restarts > 0).count();
    println!("{met} of {MACHINES} machines met a kill");
    assert!(met > 0, "no boot met a kill");
    assert!(site.end(Signal::SIGTERM).success());
}
