//! What a whole Debian system gets on a disk of its own besides its packages' files: the tables that
//! `modprobe` reads, and an initramfs that its own `mkinitramfs` makes.
//!
//! That program takes what it packs from the system that it runs in, so it runs in a copy of the tree,
//! by `chroot` in a user namespace of its own: no right is needed, and the building machine's own files
//! are out of its reach. No other program of the packages runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::Error;
use crate::ext4::TIME;
use crate::run::{run, tool};
use crate::tree::{Content, Entry, Tree, walk};

/// Runs in the user namespace: `$1` is the copy, `$2` the kernel's release.
const MAKE: &str = "set -e
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin
for tree in dev proc; do mkdir -p \"$1/$tree\"; mount --rbind \"/$tree\" \"$1/$tree\"; done
cd \"$1\"
exec chroot . /usr/bin/env -i LC_ALL=C TMPDIR=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    SOURCE_DATE_EPOCH=\"$3\" mkinitramfs -o /initrd.img \"$2\"";

/// Adds `/boot/initrd.img-RELEASE` and the module tables of the one kernel that the tree has, and
/// links to both from the names that a boot loader's configuration can rely on: `/vmlinuz` and
/// `/initrd.img`. `scratch` is a directory for the copy.
///
/// # Errors
/// There is not exactly one kernel, or a tool is missing or fails.
pub fn complete(tree: &mut Tree, recipe: &str, scratch: &Path) -> Result<(), Error> {
    let release = release(tree, recipe)?;
    let copy = scratch.join("copy");
    lay_out(tree, &copy)?;
    run(tool("depmod").arg("-b").arg(&copy).arg(&release), "kmod")?;
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--"])
        .args(["sh", "-c", MAKE, "sh"])
        .arg(&copy)
        .args([&release, TIME]);
    run(&mut command, "util-linux")?;
    let tables = format!("usr/lib/modules/{release}");
    for (name, host) in walk(&copy.join(&tables))? {
        if name.starts_with("modules.") {
            tree.insert(&format!("{tables}/{name}"), Entry::File(0o644, Content::Host(host)))?;
        }
    }
    let initrd = Content::Host(copy.join("initrd.img"));
    tree.insert(&format!("boot/initrd.img-{release}"), Entry::File(0o600, initrd))?;
    for (link, file) in [("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")] {
        tree.insert(link, Entry::Link(format!("boot/{file}-{release}")))?;
    }
    Ok(())
}

fn release(tree: &Tree, recipe: &str) -> Result<String, Error> {
    let releases: Vec<&str> =
        tree.iter().filter_map(|(path, _)| path.strip_prefix("boot/vmlinuz-")).collect();
    match releases.as_slice() {
        [release] => Ok((*release).to_owned()),
        _ => Err(Error::NotInPackages {
            path: "exactly one /boot/vmlinuz-*".to_owned(),
            wanted_by: format!("recipe {recipe}"),
        }),
    }
}

/// Makes the tree's files below a new directory, all of them readable and writable for who builds.
fn lay_out(tree: &Tree, top: &Path) -> Result<(), Error> {
    fs::create_dir(top).map_err(Error::write(top))?;
    for (path, entry) in tree.iter() {
        let to = top.join(path);
        let failed = Error::write(&to);
        match entry {
            Entry::Directory(mode) => {
                fs::create_dir(&to).map_err(failed)?;
                allow(&to, *mode | 0o700)?;
            }
            Entry::Link(target) => symlink(target, &to).map_err(failed)?,
            Entry::File(mode, Content::Bytes(bytes)) => {
                fs::write(&to, bytes).map_err(failed)?;
                allow(&to, *mode)?;
            }
            Entry::File(mode, Content::Host(from)) => {
                fs::copy(from, &to).map_err(failed)?;
                allow(&to, *mode)?;
            }
        }
    }
    Ok(())
}

fn allow(path: &Path, mode: u16) -> Result<(), Error> {
    let mode = fs::Permissions::from_mode(u32::from(mode & 0o777) | 0o600);
    fs::set_permissions(path, mode).map_err(Error::write(path))
}
