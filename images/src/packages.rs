//! Debian packages: which ones a recipe needs, fetching them, and unpacking them.
//!
//! Names are resolved with the package lists that the building machine's apt has. A package is
//! fetched with `apt-get download`, which any user may run, kept in a cache directory under its
//! version, and checked against the SHA-256 of the lists each time it is used.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;
use crate::run::run;

/// What the package lists say about a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// The version that apt would install.
    pub version: String,
    /// SHA-256 of the file, 64 hex digits.
    pub sha256: String,
    /// What it depends on: each is a list of alternatives.
    pub depends: Vec<Vec<String>>,
}

/// Reads what `apt-cache show` prints: paragraphs of `Key: value` lines (deb-control(5)).
/// Paragraphs without a name, version or hash are left out.
pub fn parse_paragraphs(text: &str) -> Vec<Package> {
    text.split("\n\n").filter_map(parse_paragraph).collect()
}

fn parse_paragraph(text: &str) -> Option<Package> {
    let fields: BTreeMap<&str, &str> = text
        .lines()
        // Lines that start with a space continue a field that is of no interest here.
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    let depends = ["Pre-Depends", "Depends"]
        .iter()
        .filter_map(|key| fields.get(key))
        .flat_map(|list| parse_relations(list))
        .collect();
    Some(Package {
        name: (*fields.get("Package")?).to_owned(),
        version: (*fields.get("Version")?).to_owned(),
        sha256: (*fields.get("SHA256")?).to_owned(),
        depends,
    })
}

/// Reads a dependency list (deb-control(5)): `a (>= 1), b | c:any`. Versions and architectures
/// are dropped: one release's packages fit each other.
fn parse_relations(list: &str) -> Vec<Vec<String>> {
    let name = |alternative: &str| -> Option<String> {
        let name = alternative.split(['(', '[', '<', ':']).next()?.trim();
        (!name.is_empty()).then(|| name.to_owned())
    };
    list.split(',')
        .map(|relation| relation.split('|').filter_map(name).collect::<Vec<_>>())
        .filter(|alternatives| !alternatives.is_empty())
        .collect()
}

/// Finds the packages that `wanted` and their dependencies are, without those in `without` and
/// what only they need. Of alternatives the first is taken. `look_up` answers what is known of
/// the names it is given.
///
/// # Errors
/// A name that `look_up` knows nothing of, and its own errors.
pub fn closure(
    recipe: &str,
    wanted: &[String],
    without: &BTreeSet<String>,
    mut look_up: impl FnMut(&[String]) -> Result<Vec<Package>, Error>,
) -> Result<BTreeMap<String, Package>, Error> {
    let mut found: BTreeMap<String, Package> = BTreeMap::new();
    // Name → who wants it.
    let mut open: BTreeMap<String, String> =
        wanted.iter().map(|name| (name.clone(), format!("recipe {recipe}"))).collect();
    while !open.is_empty() {
        let names: Vec<String> = open.keys().cloned().collect();
        let mut known: BTreeMap<String, Package> =
            look_up(&names)?.into_iter().map(|p| (p.name.clone(), p)).collect();
        let mut next = BTreeMap::new();
        for (name, wanted_by) in std::mem::take(&mut open) {
            let Some(package) = known.remove(&name) else {
                return Err(Error::UnknownPackage { name, wanted_by });
            };
            for alternatives in &package.depends {
                let left_out = alternatives.iter().any(|name| without.contains(name));
                if let (false, Some(first)) = (left_out, alternatives.first()) {
                    next.insert(first.clone(), format!("package {name}"));
                }
            }
            found.insert(name, package);
        }
        open = next.into_iter().filter(|(name, _)| !found.contains_key(name)).collect();
    }
    Ok(found)
}

/// Fetched packages, kept as files between builds.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    /// What apt said already: each question costs it most of a second.
    known: RefCell<BTreeMap<String, Package>>,
}

impl Cache {
    /// Uses `directory`, making it if need be.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(Error::write(directory))?;
        let directory = directory.canonicalize().map_err(Error::read(directory))?;
        Ok(Self { directory, known: RefCell::default() })
    }

    /// The packages that a recipe needs; see [`closure`].
    ///
    /// # Errors
    /// apt is missing or does not know one.
    pub fn resolve(
        &self,
        recipe: &str,
        wanted: &[String],
        without: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Package>, Error> {
        closure(recipe, wanted, without, |names| {
            let mut known = self.known.borrow_mut();
            let new: Vec<&String> = names.iter().filter(|n| !known.contains_key(*n)).collect();
            if !new.is_empty() {
                let mut command = Command::new("apt-cache");
                command.args(["show", "--no-all-versions", "--quiet=2"]).args(new);
                match run(&mut command, "apt") {
                    Ok(text) => {
                        let packages = parse_paragraphs(&String::from_utf8_lossy(&text));
                        known.extend(packages.into_iter().map(|p| (p.name.clone(), p)));
                    }
                    // It fails if it knows none of the names; `closure` says which.
                    Err(Error::Tool { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(names.iter().filter_map(|name| known.get(name).cloned()).collect())
        })
    }

    /// The file of a package, fetched if the cache does not have it.
    ///
    /// # Errors
    /// It cannot be fetched, or is not what the package lists say.
    pub fn fetch(&self, package: &Package) -> Result<PathBuf, Error> {
        let version = package.version.replace(':', "%3a");
        let path = self.directory.join(format!("{}_{version}.deb", package.name));
        if path.exists() && sha256(&path)? == package.sha256 {
            return Ok(path);
        }
        // A directory of its own: two builds may fetch the same package at once.
        let fresh = tempfile::tempdir_in(&self.directory).map_err(Error::write(&self.directory))?;
        let mut command = Command::new("apt-get");
        command
            // Without this, apt run by root wants to write as a user who may not write here.
            .args(["download", "-qq", "-o", "APT::Sandbox::User=root"])
            .arg(format!("{}={}", package.name, package.version))
            .current_dir(fresh.path());
        run(&mut command, "apt")?;
        let files = crate::tree::walk(fresh.path())?;
        let Some((_, file)) = files.iter().find(|(name, _)| name.ends_with(".deb")) else {
            return Err(Error::WrongPackage { name: package.name.clone() });
        };
        if sha256(file)? != package.sha256 {
            return Err(Error::WrongPackage { name: package.name.clone() });
        }
        fs::rename(file, &path).map_err(Error::write(&path))?;
        Ok(path)
    }

    /// The directory that a package is unpacked in: once for all builds, since its hash is part of
    /// the name.
    ///
    /// # Errors
    /// It cannot be fetched or unpacked.
    pub fn unpacked(&self, package: &Package) -> Result<PathBuf, Error> {
        let place = self.directory.join(format!("{}-{}", package.name, package.sha256));
        if place.is_dir() {
            return Ok(place);
        }
        let file = self.fetch(package)?;
        let fresh = tempfile::tempdir_in(&self.directory).map_err(Error::write(&self.directory))?;
        let whole = fresh.path().join("whole");
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&whole), "dpkg")?;
        match fs::rename(&whole, &place) {
            // Another build may have been faster.
            Err(_) if place.is_dir() => Ok(place),
            Err(source) => Err(Error::Write { path: place, source }),
            Ok(()) => Ok(place),
        }
    }
}

fn sha256(path: &Path) -> Result<String, Error> {
    let line = run(Command::new("sha256sum").arg("--").arg(path), "coreutils")?;
    // A name with a backslash or newline makes the line start with a backslash; none of ours has.
    Ok(String::from_utf8_lossy(&line).chars().take(64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Package: haproxy
Version: 2.6.12-1+deb12u4
Depends: libc6 (>= 2.34), adduser, lsb-base (>= 3.0-6) | sysvinit-utils
Description: fast proxy
 with a second line: not a field
Pre-Depends: dpkg (>= 1.17.14)
SHA256: 97ca

Package: libc6
Version: 2.36-9
SHA256: 01ab

Package: half
Version: 1
";

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn paragraphs_give_names_versions_and_alternatives() {
        let packages = parse_paragraphs(TEXT);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].version, "2.6.12-1+deb12u4");
        assert_eq!(
            packages[0].depends,
            [
                names(&["dpkg"]),
                names(&["libc6"]),
                names(&["adduser"]),
                names(&["lsb-base", "sysvinit-utils"])
            ]
        );
        assert_eq!(packages[1].depends, Vec::<Vec<String>>::new());
        assert_eq!(parse_relations("a:any, b [amd64] <!nocheck>"), [["a"], ["b"]]);
    }

    fn world(names: &[String]) -> Result<Vec<Package>, Error> {
        let package = |name: &str, depends: &str| Package {
            name: name.to_owned(),
            version: "1".to_owned(),
            sha256: String::new(),
            depends: parse_relations(depends),
        };
        let all = [
            package("web", "libc, init | other-init, perl"),
            package("libc", "gcc"),
            package("gcc", "libc"),
            package("perl", "perl-base"),
        ];
        Ok(all.into_iter().filter(|p| names.contains(&p.name)).collect())
    }

    #[test]
    fn the_closure_ends_in_circles_and_leaves_out_what_is_not_wanted() {
        let without = BTreeSet::from(["perl".to_owned(), "other-init".to_owned()]);
        let found = closure("r", &names(&["web"]), &without, world).expect("resolvable");
        assert_eq!(found.keys().collect::<Vec<_>>(), ["gcc", "libc", "web"]);
    }

    #[test]
    fn an_unknown_package_is_named_with_who_wants_it() {
        let fault = closure("r", &names(&["web"]), &BTreeSet::new(), world);
        let text = fault.expect_err("init is unknown").to_string();
        assert!(text.contains("init") && text.contains("package web"), "{text}");
    }
}
