//! Makes a disk that boots by itself, by BIOS and by UEFI: a partition table, GRUB, and a root.
//!
//! ```text
//! sector 0        GRUB's boot.img with the partition table (MBR) and a signature from the name
//! sector 1…       GRUB's core for BIOS, which boot.img loads from here
//! 1 MiB…8 MiB     partition 1, FAT, type EFh: EFI/BOOT/BOOTX64.EFI, GRUB's core for UEFI
//! 8 MiB…end       partition 2, ext4, type 83h: the root with /boot/grub/grub.cfg
//! ```
//!
//! Both cores look for `grub.cfg` in partition 2 of the disk that they came from. `grub-install`
//! would want a mounted disk; the bytes that it writes are these: boot.img loads sector 1 unless it
//! is told otherwise, and the core's first sector, in which `grub-mkimage` has written the length,
//! expects the rest behind itself (GRUB's sources, `util/setup.c`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::ext4::{self, TIME};
use crate::gather::Gathered;
use crate::run::{run, tool};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// Where the partitions begin.
const ESP: u64 = MIB;
const ROOT: u64 = 8 * MIB;

/// What a core needs to read the root and start a kernel; nothing is loaded later.
const MODULES: [&str; 10] = [
    "part_msdos",
    "ext2",
    "normal",
    "configfile",
    "linux",
    "echo",
    "serial",
    "terminal",
    "test",
    "reboot",
];

/// Writes the disk of `mib` MiB to the new file `to`; `label` is its root's. `scratch` is a directory
/// for parts.
///
/// # Errors
/// A tool is missing or fails, the packages lack GRUB, or what there is does not fit.
pub fn write(
    gathered: &Gathered,
    label: &str,
    mib: u64,
    scratch: &Path,
    to: &Path,
) -> Result<(), Error> {
    let disk = File::create_new(to).map_err(Error::write(to))?;
    disk.set_len(mib * MIB).map_err(Error::write(to))?;
    let place = |bytes: &[u8], at: u64| disk.write_all_at(bytes, at).map_err(Error::write(to));

    let core = core(gathered, "i386-pc", &["biosdisk"], scratch)?;
    let core = read(&core)?;
    if core.len() as u64 + SECTOR > ESP {
        return Err(Error::NoRoom { what: "GRUB's core for BIOS".to_owned() });
    }
    let boot = read(&module_dir(gathered, "i386-pc")?.join("boot.img"))?;
    let Some(sector) = boot_sector(&boot, label, mib * MIB) else {
        return Err(Error::NoRoom { what: "GRUB's boot.img".to_owned() });
    };
    place(&sector, 0)?;
    place(&core, SECTOR)?;
    place(&esp(gathered, label, scratch)?, ESP)?;

    let layout =
        ext4::Layout { label: label.to_owned(), size_mib: mib - ROOT / MIB, journal: true };
    let root = scratch.join("root.ext4");
    ext4::write(&gathered.tree, &layout, scratch, &root)?;
    copy_sparse(&root, &disk, ROOT).map_err(Error::write(to))
}

/// The first sector: GRUB's code, the disk's signature, and two partitions to the end of `size` bytes.
fn boot_sector(boot: &[u8], label: &str, size: u64) -> Option<[u8; SECTOR as usize]> {
    let mut sector = [0; SECTOR as usize];
    sector.copy_from_slice(boot.get(..SECTOR as usize)?);
    // BIOS boots this as a hard disk, and some forget to say which: GRUB_BOOT_MACHINE_DRIVE_CHECK.
    sector[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    sector[440..446].fill(0);
    sector[440..444].copy_from_slice(&blake3::hash(label.as_bytes()).as_bytes()[..4]);
    sector[446..510].fill(0);
    let partitions = [(0_u8, 0xEF_u8, ESP, ROOT), (0x80, 0x83, ROOT, size)];
    for (i, (active, kind, from, end)) in partitions.into_iter().enumerate() {
        let entry = &mut sector[446 + 16 * i..462 + 16 * i];
        // Cylinders, heads and sectors that say: too far for them.
        entry[..8].copy_from_slice(&[active, 0xFE, 0xFF, 0xFF, kind, 0xFE, 0xFF, 0xFF]);
        let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).ok();
        entry[8..12].copy_from_slice(&sectors(from)?.to_le_bytes());
        entry[12..].copy_from_slice(&sectors(end.checked_sub(from)?)?.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    Some(sector)
}

/// The packages' directory of GRUB's modules for a platform.
fn module_dir(gathered: &Gathered, platform: &str) -> Result<PathBuf, Error> {
    let path = format!("usr/lib/grub/{platform}");
    let found = gathered.roots.iter().map(|root| root.join(&path)).find(|dir| dir.is_dir());
    found.ok_or_else(|| Error::NotInPackages {
        path: format!("/{path}"),
        wanted_by: "an image of kind disk (package grub-pc-bin or grub-efi-amd64-bin)".to_owned(),
    })
}

fn core(
    gathered: &Gathered,
    platform: &str,
    more: &[&str],
    scratch: &Path,
) -> Result<PathBuf, Error> {
    let core = scratch.join(format!("core.{platform}"));
    let mut command = tool("grub-mkimage");
    command.arg("-d").arg(module_dir(gathered, platform)?).args(["-O", platform]);
    command.args(["-p", "(,msdos2)/boot/grub"]).arg("-o").arg(&core).args(MODULES).args(more);
    run(&mut command, "grub-common")?;
    Ok(core)
}

/// The partition that UEFI boots from.
fn esp(gathered: &Gathered, label: &str, scratch: &Path) -> Result<Vec<u8>, Error> {
    let core = core(gathered, "x86_64-efi", &["fat"], scratch)?;
    let image = scratch.join("esp.fat");
    let hash = blake3::hash(label.as_bytes());
    let serial = &hash.to_hex()[..8];
    let sectors = ((ROOT - ESP) / SECTOR).to_string();
    let mtools = |program: &str, arguments: &[&str]| {
        let mut command = tool(program);
        command.env("SOURCE_DATE_EPOCH", TIME).env("TZ", "UTC").arg("-i").arg(&image);
        run(command.args(arguments), "mtools").map(drop)
    };
    mtools("mformat", &["-C", "-T", &sectors, "-h", "16", "-s", "63", "-N", serial, "::"])?;
    mtools("mmd", &["::/EFI", "::/EFI/BOOT"])?;
    mtools("mcopy", &[&core.to_string_lossy(), "::/EFI/BOOT/BOOTX64.EFI"])?;
    read(&image)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::read(path))
}

/// Copies a file into another that is all zeros, without writing zeros.
fn copy_sparse(from: &Path, to: &File, at: u64) -> io::Result<()> {
    let from = File::open(from)?;
    let mut piece = vec![0; 1 << 16];
    let mut done = 0;
    loop {
        let read = from.read_at(&mut piece, done)?;
        if read == 0 {
            return Ok(());
        }
        if piece[..read].iter().any(|byte| *byte != 0) {
            to.write_all_at(&piece[..read], at + done)?;
        }
        done += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_both_partitions() {
        let boot = [7; 512];
        let sector = boot_sector(&boot, "a-test", 64 * MIB).expect("fits");
        assert_eq!(sector[..0x66], boot[..0x66]);
        assert_eq!(sector[446..454], [0, 0xFE, 0xFF, 0xFF, 0xEF, 0xFE, 0xFF, 0xFF]);
        assert_eq!(sector[454..462], [0, 8, 0, 0, 0, 56, 0, 0]);
        assert_eq!(sector[462], 0x80);
        assert_eq!(sector[470..478], [0, 64, 0, 0, 0, 0xC0, 1, 0]);
        assert_eq!(sector[478..510], [0; 32]);
        assert_eq!(sector[510..], [0x55, 0xAA]);
        // Longer than its table can say, and a program that is no boot sector.
        assert_eq!(boot_sector(&boot, "a-test", 1 << 42), None);
        assert_eq!(boot_sector(&boot[..100], "a-test", 64 * MIB), None);
    }
}
