//! The proof that the sheet metal works: a BIOS and a UEFI node boot Debian's kernel from the
//! network, by other people's servers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Bmc, in_rack, wait_for_console};
use croft_images::cpio::archive;
use croft_images::modules::Modules;
use croft_images::packages::Cache;
use croft_images::tree::{Content, Entry, Tree};
use croft_rack::{Firmware, Rack};
use tokio::process::Child;

const BUSYBOX: &str = "/bin/busybox";
const DNSMASQ: &str = "/usr/sbin/dnsmasq";
const IPXE_UEFI: &str = "/usr/lib/ipxe/snponly.efi";
const MARK: &str = "croft-rack-test: userland";
/// From power-on to userland; half a minute, unless others use the processors, too.
const BOOT: Duration = Duration::from_secs(300);

/// Without `no_timer_check` a guest that is kept waiting for a processor while its kernel looks for
/// timer interrupts finds none, and gives up.
const SCRIPT: &str = "#!ipxe
kernel http://10.10.0.1/vmlinuz initrd=initrd.img console=ttyS0,115200 quiet no_timer_check panic=5
initrd --name initrd.img http://10.10.0.1/initrd.img
boot
";

const INIT: &str = "#!/bin/busybox sh
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev
for module in $($bb cat /order); do $bb insmod /$module; done
$bb --install -s /bin
echo \"croft-rack-test: userland\"
export PATH=/bin
button=$(grep -l 'Power Button' /sys/class/input/event*/device/name)
event=${button#/sys/class/input/}
(dd if=/dev/input/${event%%/*} of=/dev/null bs=24 count=1 2>/dev/null && poweroff -f) &
while :; do
    for port in /sys/class/virtio-ports/*; do
        dev=/dev/${port##*/}
        [ \"$(cat $port/name)\" = croft.shell ] && sh <>$dev >&0 2>&1
    done
    sleep 1
done
";

#[test]
fn nodes_boot_linux_from_the_network() {
    // Before the rack: there is no way out of it to Debian's servers.
    kernel();
    in_rack("boot::nodes_boot_linux_from_the_network", &["--nodes", "2"], boot);
}

async fn boot(rack: Rack) {
    let site = rack.dir().join("site");
    prepare(&site);
    let _servers = serve(&rack, &site).await;
    let begun = Instant::now();
    for node in rack.nodes() {
        assert_eq!(Bmc::of(&rack, &node).reset("On").await, 204);
    }
    for name in ["n1", "n2"] {
        let node = rack.node(name).expect("node");
        wait_for_console(&node, 0, MARK, BOOT).await;
        eprintln!("{name} ({:?}): userland after {:?}", node.info().firmware, begun.elapsed());

        // The shell tells output, status and identity; the kernel knows how it was started.
        let uuid = node.shell("cat /sys/class/dmi/id/product_uuid", BOOT).await.expect("shell");
        assert_eq!(uuid.trim(), node.info().uuid.to_string());
        let efi = node.shell_output("test -d /sys/firmware/efi", BOOT).await.expect("shell");
        assert_eq!(efi.status == 0, node.info().firmware == Firmware::Uefi);
        let both = node.shell_output("echo out; echo err >&2; exit 7", BOOT).await.expect("shell");
        assert_eq!((both.status, both.output.trim()), (7, "out\nerr"));
    }

    // A guest's reboot keeps the machine.
    let node = rack.node("n1").expect("n1");
    let pid = node.qemu_pid().expect("pid file");
    let before = node.console_len().expect("console");
    node.shell("(sleep 1; reboot -f) >/dev/null 2>&1 &", BOOT).await.expect("shell");
    wait_for_console(&node, before, "SeaBIOS", BOOT).await;
    assert_eq!(node.qemu_pid().expect("pid file"), pid);
    // The power button reaches the guest, and its power-off the BMC.
    let node = rack.node("n2").expect("n2");
    let bmc = Bmc::of(&rack, &node);
    assert_eq!(bmc.reset("GracefulShutdown").await, 204);
    bmc.wait_for("Off").await;
    assert_eq!(node.qemu_pid().expect("pid file"), None);
}

/// Makes the directory that the servers serve.
fn prepare(site: &Path) {
    for (file, package) in
        [(BUSYBOX, "busybox-static"), (DNSMASQ, "dnsmasq-base"), (IPXE_UEFI, "ipxe")]
    {
        assert!(Path::new(file).exists(), "{file} is missing: apt-get install {package}");
    }
    std::fs::create_dir(site).expect("site");
    let (kernel, initrd) = (kernel(), site.join("initrd.img"));
    std::fs::copy(kernel.0, site.join("vmlinuz")).expect("kernel");
    std::fs::write(initrd, initramfs(&kernel.1)).expect("initramfs");
    std::fs::write(site.join("boot.ipxe"), SCRIPT).expect("script");
    std::fs::copy(IPXE_UEFI, site.join("snponly.efi")).expect("iPXE");
}

/// Debian's kernel for virtual machines and its unpacked package.
fn kernel() -> (PathBuf, PathBuf) {
    const META: &str = "linux-image-cloud-amd64";
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.build/packages");
    let cache = Cache::open(&place).expect("package cache");
    if let Some(found) = std::fs::read_dir(&place).expect("cache").flatten().find_map(|entry| {
        // Any that is unpacked will do; asking apt takes many seconds on a busy machine.
        entry.file_name().to_str()?.starts_with("linux-image-").then_some(())?;
        kernel_in(&entry.path())
    }) {
        return found;
    }
    // Of all that the package wants only the kernel itself is needed.
    let without = ["kmod", "linux-base", "initramfs-tools"].map(str::to_owned).into();
    let packages = cache
        .resolve("rack-test", &[META.to_owned()], &without)
        .expect("apt knows linux-image-cloud-amd64 (apt-get update?)");
    let image = packages
        .values()
        .find(|package| package.name.ends_with("-cloud-amd64") && package.name != META)
        .expect("linux-image-cloud-amd64 depends on a kernel");
    let package = cache.unpacked(image).expect("kernel package");
    kernel_in(&package).expect("the package has a kernel")
}

/// The kernel in an unpacked package, and the package.
fn kernel_in(package: &Path) -> Option<(PathBuf, PathBuf)> {
    let boot = std::fs::read_dir(package.join("boot")).ok()?;
    let kernel =
        boot.flatten().find(|file| file.file_name().to_string_lossy().starts_with("vmlinuz-"))?;
    Some((kernel.path(), package.to_owned()))
}

fn initramfs(package: &Path) -> Vec<u8> {
    let mut tree = Tree::merged_usr();
    let mut add = |path: &str, entry| tree.insert(path, entry).expect("entry");
    for directory in ["proc", "sys", "dev"] {
        add(directory, Entry::Directory(0o755));
    }
    add("bin/busybox", Entry::File(0o755, Content::Host(BUSYBOX.into())));
    add("init", Entry::File(0o755, Content::Bytes(INIT.into())));
    let modules = Modules::find(&[package.to_owned()]).expect("modules");
    let wanted = ["virtio_pci", "virtio_console", "button", "evdev"].map(str::to_owned);
    let mut order = String::new();
    for (path, host) in modules.in_load_order("rack-test", &wanted).expect("modules") {
        order.push_str(&format!("{path}\n"));
        add(&path, Entry::File(0o644, Content::Host(host)));
    }
    add("order", Entry::File(0o644, Content::Bytes(order.into())));
    archive(&tree).expect("archive")
}

/// Starts DHCP, TFTP, router advertisements and HTTP on the idle segment.
async fn serve(rack: &Rack, site: &Path) -> [Child; 2] {
    let leg = rack.info().segments[0].device.clone();
    // The IPv6 prefix is for the router advertisements alone, without which iPXE waits for one.
    for address in ["10.10.0.1/24", "fd00:10::1/64"] {
        let mut ip = rack.fabric_command("ip");
        ip.args(["addr", "add", address, "dev", &leg]);
        assert!(ip.status().await.expect("ip").success());
    }
    let mut dnsmasq = rack.fabric_command(DNSMASQ);
    dnsmasq
        // In its debug mode it keeps user and groups, which cannot be changed in here.
        .args(["--no-daemon", "--conf-file=/dev/null", "--port=0"])
        .args(["--bind-interfaces", "--dhcp-authoritative", "--enable-tftp", "--enable-ra"])
        .arg(format!("--interface={leg}"))
        .arg(format!("--log-facility={}", rack.dir().join("dnsmasq.log").display()))
        .arg(format!("--pid-file={}", site.join("dnsmasq.pid").display()))
        .arg(format!("--dhcp-leasefile={}", site.join("leases").display()))
        .arg(format!("--tftp-root={}", site.display()))
        .args(["--dhcp-range=10.10.0.100,10.10.0.150", "--dhcp-range=fd00:10::,ra-only"])
        .arg(format!("--ra-param={leg},0,0"))
        .args(["--dhcp-option-force=encap:175,176,1b", "--dhcp-userclass=set:ipxe,iPXE"])
        .args(["--dhcp-boot=tag:ipxe,http://10.10.0.1/boot.ipxe"])
        .args(["--dhcp-boot=tag:!ipxe,snponly.efi"]);
    let dnsmasq = dnsmasq.stdin(Stdio::null()).spawn().expect("dnsmasq");
    let mut httpd = rack.fabric_command(BUSYBOX);
    httpd.args(["httpd", "-f", "-p", "10.10.0.1:80", "-h"]).arg(site);
    let httpd = httpd.stdin(Stdio::null()).spawn().expect("httpd");
    [dnsmasq, httpd]
}
