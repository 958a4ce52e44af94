//! QEMU's command line for a node: a pure function, so that it can be read in one place.

use crate::plan::Firmware;
use crate::tools::OVMF_CODE;
use crate::{NodeInfo, RackInfo};

/// QEMU's monitor, in the node's directory.
pub(crate) const MONITOR: &str = "qmp.sock";
/// The node's shell, in the node's directory; images without one leave it unanswered.
pub(crate) const SHELL: &str = "shell.sock";
/// The serial console, in the node's directory; all boots of the node, one after another.
pub(crate) const CONSOLE: &str = "console.log";
/// The node's copy of OVMF's variables.
pub(crate) const VARIABLES: &str = "vars.fd";
/// Name of the shell's virtio-serial port in the guest.
pub(crate) const SHELL_PORT: &str = "croft.shell";

/// Checksum and segmentation offload of either side: a frame must cross the switch as it will
/// stand on the wire, since the switch in user space finishes nothing for the kernel.
const OFFLOADS: &str = "csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
                        guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";

/// QEMU's arguments; relative paths are in the node's directory.
pub(crate) fn arguments(rack: &RackInfo, node: &NodeInfo) -> Vec<String> {
    let mut args: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| args.extend([format!("-{option}"), value]);
    add("name", node.name.to_string());
    add("uuid", node.uuid.to_string());
    add("m", format!("{}M", rack.memory_mib));
    add("smp", rack.cpus.to_string());
    if rack.accelerator == "kvm" {
        add("accel", "kvm".to_owned());
        add("cpu", "host".to_owned());
    } else {
        add("accel", "tcg,thread=multi".to_owned());
        // RDRAND seeds the guest's random numbers before its virtio driver is there.
        add("cpu", "qemu64,+rdrand".to_owned());
    }
    add("display", "none".to_owned());
    add("chardev", format!("file,id=console,path={CONSOLE},append=on"));
    add("serial", "chardev:console".to_owned());
    add("qmp", format!("unix:{MONITOR},server=on,wait=off"));
    add("device", "virtio-rng-pci".to_owned());
    add("device", "virtio-serial-pci".to_owned());
    add("chardev", format!("socket,id=shell,path={SHELL},server=on,wait=off"));
    add("device", format!("virtserialport,chardev=shell,name={SHELL_PORT}"));
    match node.firmware {
        Firmware::Bios => {
            // Without graphics SeaBIOS, and with it iPXE's ROM, speaks on the serial console.
            add("machine", "pc,graphics=off".to_owned());
            // A boot that finds no server is tried again, as real firmware does.
            let order = if node.disk.is_some() { "nc" } else { "n" };
            add("boot", format!("{order},menu=off,strict=on,reboot-timeout=1000"));
        }
        Firmware::Uefi => {
            add("machine", "q35,smm=off,graphics=off".to_owned());
            add("boot", "menu=off,strict=on".to_owned());
            add("drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={OVMF_CODE}"));
            add("drive", format!("if=pflash,unit=1,format=raw,file={VARIABLES}"));
            add("fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no".to_owned());
        }
    }
    for (i, (mac, port)) in node.macs.iter().zip(&node.ports).enumerate() {
        add("netdev", format!("tap,id=nic{i},ifname={port},script=no,downscript=no,vhost=off"));
        let mut device = format!("virtio-net-pci,netdev=nic{i},mac={mac},{OFFLOADS}");
        // Only NIC 0 boots. A UEFI node has no ROM at all, so that OVMF's own PXE client speaks.
        if i == 0 {
            device += ",bootindex=1";
        }
        if i > 0 || node.firmware == Firmware::Uefi {
            device += ",romfile=";
        }
        add("device", device);
    }
    if let Some(disk) = &node.disk {
        let disk = disk.display();
        add("drive", format!("if=none,id=disk,format=raw,snapshot=on,file={disk}"));
        add("device", "virtio-blk-pci,drive=disk,bootindex=2".to_owned());
    }
    args.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_disk_comes_after_the_network() {
        let options = crate::plan::Options {
            disks: vec!["n2=/tmp/disk".parse().expect("valid")],
            ..crate::plan::tests::options()
        };
        let rack = RackInfo::plan(&options, &options.dir).expect("valid");
        let lines: Vec<String> =
            rack.nodes.iter().map(|node| arguments(&rack, node).join(" ")).collect();
        assert!(lines[1].contains("snapshot=on,file=/tmp/disk"), "{}", lines[1]);
        assert!(lines[1].contains("virtio-blk-pci,drive=disk,bootindex=2"), "{}", lines[1]);
        assert_eq!(lines.iter().filter(|line| line.contains("virtio-blk-pci")).count(), 1);
    }

    #[test]
    fn one_nic_boots_and_there_is_no_disk() {
        let options = crate::plan::tests::options();
        let rack = RackInfo::plan(&options, &options.dir).expect("valid");
        for node in &rack.nodes {
            let line = arguments(&rack, node).join(" ");
            assert_eq!(line.matches("bootindex").count(), 1, "{line}");
            assert_eq!(line.matches("virtio-net-pci").count(), 2, "{line}");
            let pflash = line.matches("if=pflash").count();
            assert_eq!(line.matches("-drive").count(), pflash, "{line}");
            assert_eq!(pflash, if node.firmware == Firmware::Uefi { 2 } else { 0 }, "{line}");
            assert!(!line.contains("no-reboot"), "{line}");
        }
    }
}
