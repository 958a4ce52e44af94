//! Real boots: test images in an emulated machine, the disk behind tgt, both in a namespace of their
//! own that any user can make. The web server's disk goes away and comes back; the load balancer
//! lets nothing in that was not asked for.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::common::{Image, build, lines, packages_cache};
use croft_images::cpio;
use croft_images::tree::{Content, Entry, Tree};
use croft_proto::{BootEnv, Iqn, IscsiLogin, MacAddr, RootSource, Secret, USERLAND_MARK};
use croft_test_support::namespace;

const HOST_NAME: &str = "shop-web-2";
const INITIATOR: &str = "iqn.2026-11.internal.croft:node.n1";
const TARGET: &str = "iqn.2026-11.internal.croft:member.shop.web.2";
/// What the balancer's test listens on.
const PORTS: [u16; 3] = [80, 81, 8404];
/// What is added to a port's number where the loopback device forwards to the boot NIC, and where
/// to the other one.
const INNER: u16 = 10_000;
const OUTER: u16 = 20_000;
/// Generous: the machine may be busy with other things.
const BOOT: Duration = Duration::from_secs(120);

/// The images, built here unless the environment says where they are.
fn store() -> PathBuf {
    if let Some(store) = std::env::var_os("CROFT_IMAGE_DIR").map(PathBuf::from)
        && Image::find(&store, "web-server-test").is_some()
    {
        return store;
    }
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boot-store");
    let program = Path::new(env!("CARGO_BIN_EXE_croft-images"));
    let names = ["load-balancer-test", "shop-content", "web-server-test"];
    assert_eq!(lines(&build(program, &store, &packages_cache(), &names)).len(), 3);
    store
}

/// Runs the test `name` in namespaces of its own, and there returns the images and a directory.
fn bench(name: &str) -> Option<(PathBuf, tempfile::TempDir)> {
    // One machine at a time: each is as busy as a processor can be.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let inside = namespace::enter_empty(name, |command| {
        command.env("CROFT_IMAGE_DIR", store());
    });
    inside.then(|| (store(), tempfile::tempdir().expect("directory")))
}

#[test]
fn a_web_server_boots_serves_and_survives_an_outage() {
    let Some((store, dir)) = bench("boot::a_web_server_boots_serves_and_survives_an_outage") else {
        return;
    };
    let root = dir.path().join("root");
    let image = Image::find(&store, "web-server-test").expect("built");
    let data = Image::find(&store, "shop-content").expect("built");
    fs::copy(image.file("disk"), &root).expect("copied");
    // The volume is larger than the image: the file system must grow.
    File::options().write(true).open(&root).and_then(|f| f.set_len(256 << 20)).expect("grown");

    let mut target = Target::start(dir.path(), &root, Some(&data.file("disk")));
    let mut guest = Guest::start(dir.path(), &image);
    guest.wait_for_console(USERLAND_MARK, BOOT);

    // It serves, and says who it is.
    guest.until("wget -q -O - http://127.0.0.1/health", |out| out.contains("ok"));
    let page = guest.shell("wget -S -q -O - http://127.0.0.1/ 2>&1");
    assert!(page.contains("X-Croft-Member: shop-web-2") && page.contains("<h1>"), "{page}");
    for path in ["whoami", "burn"] {
        let name = guest.shell(&format!("wget -q -O - http://127.0.0.1/{path}"));
        assert_eq!(name.trim(), HOST_NAME, "{path}");
    }
    assert!(guest.shell("mount").contains("/srv/data type ext4 (ro"));

    // Secrets are where they belong and nowhere else.
    assert_eq!(guest.shell("stat -c '%a %U' /run/croft/agent.json").trim(), "600 root");
    let leaks =
        guest.shell("cat /proc/cmdline /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '0f0[f]'");
    assert_eq!(leaks.trim(), "0", "the CHAP secret is in an argument");
    let kept = "/proc/$(pidof iscsid | cut -d' ' -f1)/root";
    assert_eq!(guest.shell(&format!("ls {kept}/croft")).matches("No such file").count(), 1);
    assert!(guest.shell(&format!("ls {kept}/usr/sbin")).contains("iscsistart"));

    // The volume's size is the root's.
    guest.until("df -m / | tail -n 1 | awk '{print ($2 > 200)}'", |out| out.trim() == "1");

    // An outage is a pause.
    guest.shell("(croft-disk-load 14 >/tmp/load 2>&1) &");
    guest.until("ls /var/lib/croft-disk-load | wc -l", |out| {
        out.trim().parse::<u32>().is_ok_and(|count| count > 20)
    });
    target.stop();
    std::thread::sleep(Duration::from_secs(4)); // the outage itself
    target = Target::start(dir.path(), &root, Some(&data.file("disk")));
    let report = guest.until("cat /tmp/load", |out| out.contains("longest pause"));
    assert!(report.contains(", good"), "{report}");
    let pause: u32 = report
        .split("longest pause ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .expect("a number");
    assert!((3_000..20_000).contains(&pause), "{report}");
    let errors = guest.shell("dmesg | grep -ciE 'I/O error|remount|EXT4-fs error'");
    assert_eq!(errors.trim(), "0");

    // The power button turns it off at once, with a clean disk.
    guest.power_button();
    target.stop();
    let check = Command::new("e2fsck").arg("-fn").arg(&root).output().expect("e2fsck starts");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}

#[test]
fn a_load_balancer_boots_closed() {
    let Some((store, dir)) = bench("boot::a_load_balancer_boots_closed") else {
        return;
    };
    let root = dir.path().join("root");
    let image = Image::find(&store, "load-balancer-test").expect("built");
    fs::copy(image.file("disk"), &root).expect("copied");
    let mut target = Target::start(dir.path(), &root, None);
    let mut guest = Guest::start(dir.path(), &image);
    guest.wait_for_console(USERLAND_MARK, BOOT);
    guest.until("nft list table inet croft", |out| out.contains("notrack"));
    guest.shell("ip address add 10.0.3.15/24 dev eth1 && ip link set eth1 up");
    for port in PORTS {
        guest.shell(&format!("nc -ll -p {port} -e /bin/echo here >/dev/null 2>&1 &"));
    }

    // Nothing is exposed: of all that listens, only the boot server's side sees the statistics.
    assert_eq!(answering(INNER), [8404]);
    assert_eq!(answering(OUTER), [0_u16; 0]);
    let exposed = guest.shell("nft add element inet croft exposed '{ 80 }'");
    assert_eq!(exposed.trim(), "");
    assert_eq!(answering(OUTER), [80]);
    assert_eq!(answering(INNER), [8404]);
    assert_eq!(guest.shell("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    // The disk's connection is in no table that could be full.
    let tracked = guest.shell("grep -c 'port=3260' /proc/net/nf_conntrack");
    assert_eq!(tracked.trim(), "0");

    guest.power_button();
    target.stop();
}

/// Which of the ports answer behind the forwards of one NIC.
fn answering(nic: u16) -> Vec<u16> {
    let answers = |port: &u16| {
        let mut stream = TcpStream::connect(("127.0.0.1", nic + port)).expect("forwarded");
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
        // The emulator accepts for the machine, and hangs up if that does not.
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).is_ok_and(|()| &answer == b"here")
    };
    PORTS.into_iter().filter(answers).collect()
}

/// tgt, serving a root and perhaps a data disk.
struct Target {
    child: Child,
}

impl Target {
    fn start(dir: &Path, root: &Path, data: Option<&Path>) -> Self {
        let socket = dir.join("tgt");
        let child = Command::new("tgtd")
            .args(["-f", "--iscsi", "portal=127.0.0.1:3260"])
            .env("TGT_IPC_SOCKET", &socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tgtd starts");
        let admin = |line: String| {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let output = Command::new("tgtadm")
                    .args(["--lld", "iscsi"])
                    .args(line.split(' '))
                    .env("TGT_IPC_SOCKET", &socket)
                    .output()
                    .expect("tgtadm starts");
                if output.status.success() {
                    return;
                }
                let fault = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(Instant::now() < deadline, "tgtadm {line}: {fault}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        let unit = "--op new --mode logicalunit --tid 1 --lun";
        admin(format!("--op new --mode account --user {INITIATOR} --password {}", secret()));
        admin(format!("--op new --mode target --tid 1 -T {TARGET}"));
        admin(format!("{unit} 1 -b {}", root.display()));
        if let Some(data) = data {
            admin(format!("{unit} 2 -b {}", data.display()));
            let read_only = "--op update --mode logicalunit --tid 1 --lun 2 --params readonly=1";
            admin(read_only.to_owned());
        }
        admin(format!("--op bind --mode account --tid 1 --user {INITIATOR}"));
        admin("--op bind --mode target --tid 1 -I ALL".to_owned());
        Self { child }
    }

    fn stop(&mut self) {
        self.child.kill().expect("tgtd runs");
        self.child.wait().expect("tgtd ends");
    }
}

/// The emulator's options that forward the loopback device's ports to an address of the machine.
fn forwards(nic: u16, address: &str) -> String {
    PORTS.map(|port| format!(",hostfwd=tcp:127.0.0.1:{}-{address}:{port}", nic + port)).concat()
}

fn secret() -> String {
    "0f0f".repeat(8)
}

/// An emulated machine that boots an image with a node's own archive behind its initramfs.
struct Guest {
    child: Child,
    console: PathBuf,
    shell: UnixStream,
    monitor: PathBuf,
}

impl Guest {
    fn start(dir: &Path, image: &Image) -> Self {
        let env = BootEnv {
            host_name: HOST_NAME.to_owned(),
            boot_nic: "52:54:00:00:00:01".parse::<MacAddr>().expect("valid"),
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            root: Some(RootSource::Iscsi(IscsiLogin {
                initiator: INITIATOR.parse::<Iqn>().expect("valid"),
                target: TARGET.parse::<Iqn>().expect("valid"),
                portal: Ipv4Addr::new(10, 0, 2, 2),
                secret: Secret::new(secret()),
            })),
        };
        let mut tree = Tree::default();
        let mut put = |path: &str, text: String| {
            let entry = Entry::File(0o600, Content::Bytes(text.into_bytes()));
            tree.insert(path, entry).expect("valid");
        };
        put("croft/boot.env", env.render().expect("valid"));
        put("croft/agent.json", "{}".to_owned());
        tree.insert("croft", Entry::Directory(0o700)).expect("valid");
        let mut initrd = fs::read(image.file("initrd")).expect("readable");
        assert_eq!(initrd.len() % 4, 0);
        initrd.extend(cpio::archive(&tree).expect("archive"));
        let initrd_path = dir.join("initrd");
        fs::write(&initrd_path, initrd).expect("written");

        let (console, shell, monitor) =
            (dir.join("console"), dir.join("shell"), dir.join("monitor"));
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "qemu64,+rdrand", "-m", "384", "-no-reboot"])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-kernel")
            .arg(image.file("kernel"))
            .arg("-initrd")
            .arg(initrd_path)
            .args(["-append", &image.manifest.kernel_args])
            .args(["-netdev", &format!("user,id=n0{}", forwards(INNER, "10.0.2.15"))])
            .args(["-device", "virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,romfile="])
            .args([
                "-netdev",
                &format!("user,id=n1,net=10.0.3.0/24{}", forwards(OUTER, "10.0.3.15")),
            ])
            .args(["-device", "virtio-net-pci,netdev=n1,mac=52:54:00:00:00:02,romfile="])
            .args(["-device", "virtio-rng-pci"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=shell,name=croft.shell", "-chardev"])
            .arg(format!("socket,id=shell,path={},server=on,wait=off", shell.display()))
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())])
            .spawn()
            .expect("qemu starts");
        let deadline = Instant::now() + Duration::from_secs(10);
        let shell = loop {
            match UnixStream::connect(&shell) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "no shell socket: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        shell.set_read_timeout(Some(Duration::from_secs(40))).expect("set");
        Self { child, console, shell, monitor }
    }

    fn wait_for_console(&self, mark: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let text = fs::read(&self.console).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            if text.contains(mark) {
                return;
            }
            assert!(Instant::now() < deadline, "no {mark:?} on the console:\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs a command and returns what it prints.
    fn shell(&mut self, command: &str) -> String {
        // Put together by the shell, so that an echo could not be taken for it.
        let line = format!("{command} 2>&1; printf '\\nend-%s\\n' of-command\n");
        self.shell.write_all(line.as_bytes()).expect("written");
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(b"\nend-of-command\n") {
            if let Err(error) = self.shell.read_exact(&mut byte) {
                let console = fs::read(&self.console).unwrap_or_default();
                let console = String::from_utf8_lossy(&console).into_owned();
                panic!("{command}: {error}\n{}\n{console}", String::from_utf8_lossy(&seen));
            }
            seen.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&seen).into_owned();
        text.trim_end_matches("\nend-of-command\n").to_owned()
    }

    /// Repeats a command until its output is what is wanted, and returns that.
    fn until(&mut self, command: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let out = self.shell(command);
            if wanted(&out) {
                return out;
            }
            assert!(Instant::now() < deadline, "{command} still prints {out:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Presses the power button and waits until the machine is off.
    fn power_button(&mut self) {
        let mut monitor = UnixStream::connect(&self.monitor).expect("the monitor listens");
        monitor
            .write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"system_powerdown\"}\n")
            .expect("written");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().expect("own child").is_none() {
            assert!(Instant::now() < deadline, "the power button did nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // After a failed assertion; one that is off already needs nothing.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) && self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) && self.child.kill().is_ok() {
            let _ = self.child.wait();
        }
    }
}
