//! From a recipe's contents to a tree: packages unpacked, what is kept taken out of them together
//! with the libraries it needs, modules in load order, overlays on top.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::elf;
use crate::modules::Modules;
use crate::packages::Cache;
use crate::recipe::{Kind, Recipe};
use crate::run::run;
use crate::tree::{Content, Entry, Tree, clean, entry_of, walk};

/// Where the loader looks for libraries without being told (ld.so(8), Debian's multiarch).
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];

/// Where the list of modules lies in a tree: absolute paths in load order, one a line.
pub const MODULE_LIST: &str = "etc/croft/modules";

/// The same for modules that can wait until the role runs.
pub const LATER_MODULE_LIST: &str = "etc/croft/modules.later";

/// A gathered tree, and where its packages are unpacked.
#[derive(Debug)]
pub struct Gathered {
    /// The files.
    pub tree: Tree,
    /// Where each of its packages is unpacked.
    pub roots: Vec<PathBuf>,
}

/// Gathers a recipe's tree.
///
/// # Errors
/// A package cannot be fetched, or does not have what the recipe or a program wants.
pub fn gather(recipe: &Recipe, overlays: &Path, cache: &Cache) -> Result<Gathered, Error> {
    let name = recipe.name.as_str();
    let packages = cache.resolve(name, &recipe.contents.packages, &recipe.without)?;
    let roots: Vec<PathBuf> =
        packages.values().map(|package| cache.unpacked(package)).collect::<Result<_, _>>()?;
    // A data image is not a root: it has no /usr.
    let tree = if packages.is_empty() { Tree::default() } else { Tree::merged_usr() };
    let mut taker = Taker { roots: &roots, tree };
    for path in &recipe.contents.keep {
        taker.take(path, &format!("recipe {name}"))?;
    }
    if recipe.kind == Kind::Disk {
        taker.take_all(&recipe.contents.drop)?;
    }
    let mut tree = taker.tree;
    add_modules(recipe, &roots, &mut tree)?;
    add_commands(&mut tree)?;
    for path in &recipe.contents.directories {
        tree.insert(path, Entry::Directory(0o755))?;
    }
    for overlay in &recipe.contents.overlays {
        tree.overlay(&overlays.join(overlay))?;
    }
    Ok(Gathered { tree, roots })
}

struct Taker<'a> {
    roots: &'a [PathBuf],
    tree: Tree,
}

impl Taker<'_> {
    /// The packages' files for a path of the tree: each may have it within `/usr` or outside.
    fn find(&self, path: &str) -> impl Iterator<Item = PathBuf> {
        let places = [Some(path), path.strip_prefix("usr/")];
        places
            .into_iter()
            .flatten()
            .flat_map(|path| self.roots.iter().map(move |root| root.join(path)))
            .filter(|host| fs::symlink_metadata(host).is_ok())
    }

    /// Takes a file, link or directory with all that it needs.
    fn take(&mut self, path: &str, wanted_by: &str) -> Result<(), Error> {
        let path = clean(path)?;
        if matches!(self.tree.get(&path), Some(Entry::File(..) | Entry::Link(_))) {
            return Ok(());
        }
        let hosts: Vec<PathBuf> = self.find(&path).collect();
        let Some(host) = hosts.first() else {
            return Err(Error::NotInPackages { path, wanted_by: wanted_by.to_owned() });
        };
        let entry = entry_of(host)?;
        self.tree.insert(&path, entry.clone())?;
        match entry {
            Entry::Directory(_) => {
                // Several packages may have something in it.
                for host in hosts.iter().filter(|host| host.is_dir()) {
                    for (below, _) in walk(host)? {
                        self.take(&format!("{path}/{below}"), wanted_by)?;
                    }
                }
            }
            Entry::Link(target) => {
                let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                let target = resolve(above, &target);
                self.take(&target, &format!("link /{path}"))?;
            }
            Entry::File(_, content) => self.take_needs(&path, &content.bytes()?)?,
        }
        Ok(())
    }

    /// Takes everything but what is at or below these paths.
    fn take_all(&mut self, drop: &[String]) -> Result<(), Error> {
        let drop = drop.iter().map(|path| clean(path)).collect::<Result<Vec<_>, _>>()?;
        for root in self.roots {
            for (path, host) in walk(root)? {
                let path = clean(&path)?;
                let is_below = |top: &String| {
                    path.strip_prefix(top)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                };
                // The links into /usr are there already.
                let is_merged =
                    !path.contains('/') && matches!(self.tree.get(&path), Some(Entry::Link(_)));
                if is_merged || drop.iter().any(is_below) {
                    continue;
                }
                let entry = entry_of(&host)?;
                let is_directory = matches!(entry, Entry::Directory(_));
                if !is_directory || self.tree.get(&path).is_none() {
                    self.tree.insert(&path, entry)?;
                }
            }
        }
        Ok(())
    }

    fn take_needs(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        if !elf::is_elf(bytes) {
            return Ok(());
        }
        let needs = elf::needs(bytes).ok_or_else(|| Error::Elf {
            path: path.to_owned(),
            fault: "its headers point outside of it".to_owned(),
        })?;
        let wanted_by = format!("program /{path}");
        if let Some(loader) = &needs.loader {
            self.take(loader, &wanted_by)?;
        }
        for library in &needs.libraries {
            let place = LIBRARIES
                .iter()
                .map(|directory| format!("{directory}/{library}"))
                .find(|place| self.find(place).next().is_some());
            let Some(place) = place else {
                return Err(Error::NotInPackages { path: library.clone(), wanted_by });
            };
            self.take(&place, &wanted_by)?;
        }
        Ok(())
    }
}

/// Where a link in the directory `above` points to, within the tree.
fn resolve(above: &str, target: &str) -> String {
    let mut parts: Vec<&str> =
        if target.starts_with('/') { Vec::new() } else { above.split('/').collect() };
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn add_modules(recipe: &Recipe, roots: &[PathBuf], tree: &mut Tree) -> Result<(), Error> {
    let modules = Modules::find(roots)?;
    let contents = &recipe.contents;
    for (list, wanted) in
        [(MODULE_LIST, &contents.modules), (LATER_MODULE_LIST, &contents.modules_later)]
    {
        let mut lines = String::new();
        for (path, host) in modules.in_load_order(recipe.name.as_str(), wanted)? {
            lines.push_str(&format!("/{path}\n"));
            tree.insert(&path, Entry::File(0o644, Content::Host(host)))?;
        }
        if !wanted.is_empty() {
            tree.insert(list, Entry::File(0o644, Content::Bytes(lines.into_bytes())))?;
        }
    }
    Ok(())
}

/// Links every command of a kept busybox to it, unless a package has that command.
fn add_commands(tree: &mut Tree) -> Result<(), Error> {
    let Some(Entry::File(_, Content::Host(busybox))) = tree.get("usr/bin/busybox") else {
        return Ok(());
    };
    let list = run(Command::new(busybox).arg("--list"), "busybox-static")?;
    for command in String::from_utf8_lossy(&list).lines() {
        let taken =
            ["bin", "sbin"].iter().any(|d| tree.get(&format!("usr/{d}/{command}")).is_some());
        if !taken {
            tree.insert(&format!("usr/bin/{command}"), Entry::Link("busybox".to_owned()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_within_the_tree() {
        assert_eq!(resolve("usr/lib/x", "libc.so.6"), "usr/lib/x/libc.so.6");
        assert_eq!(resolve("usr/lib64", "/lib/x/ld.so"), "lib/x/ld.so");
        assert_eq!(resolve("usr/bin", "../../../etc/y"), "etc/y");
    }

    #[test]
    fn a_directory_is_taken_from_all_packages_that_have_it() {
        let dir = tempfile::tempdir().expect("directory");
        let roots = [dir.path().join("a"), dir.path().join("b")];
        for (root, path) in roots.iter().zip(["lib/x/one", "usr/lib/x/two"]) {
            fs::create_dir_all(root.join(path)).expect("made");
        }
        let mut taker = Taker { roots: &roots, tree: Tree::merged_usr() };
        taker.take("/lib/x", "recipe r").expect("there");
        for path in ["usr/lib/x/one", "usr/lib/x/two"] {
            assert!(matches!(taker.tree.get(path), Some(Entry::Directory(_))), "{path}");
        }
    }

    #[test]
    fn a_program_is_taken_with_its_loader_and_libraries() {
        let dir = tempfile::tempdir().expect("directory");
        let roots = [dir.path().to_owned()];
        let put = |path: &str, from: &str| {
            let to = dir.path().join(path);
            fs::create_dir_all(to.parent().expect("has one")).expect("made");
            fs::copy(from, to).expect("copied");
        };
        let libc = "/lib/x86_64-linux-gnu/libc.so.6";
        put("bin/prog", "/bin/true");
        put("lib/x86_64-linux-gnu/libc.so.6.1", libc);
        symlink("libc.so.6.1", dir.path().join("lib/x86_64-linux-gnu/libc.so.6")).expect("linked");
        let mut taker = Taker { roots: &roots, tree: Tree::merged_usr() };
        let fault = taker.take("/bin/prog", "recipe r").expect_err("the loader is missing");
        assert!(fault.to_string().contains("ld-linux-x86-64.so.2"), "{fault}");

        put("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2");
        fs::create_dir(dir.path().join("lib64")).expect("made");
        let loader = "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
        symlink(loader, dir.path().join("lib64/ld-linux-x86-64.so.2")).expect("linked");
        let mut taker = Taker { roots: &roots, tree: Tree::merged_usr() };
        taker.take("/bin/prog", "recipe r").expect("complete");
        let libraries = "usr/lib/x86_64-linux-gnu";
        assert!(taker.tree.get("usr/lib64/ld-linux-x86-64.so.2").is_some());
        assert!(matches!(
            taker.tree.get(&format!("{libraries}/libc.so.6")),
            Some(Entry::Link(target)) if target == "libc.so.6.1"
        ));
        assert!(taker.tree.get(&format!("{libraries}/libc.so.6.1")).is_some());
    }
}
