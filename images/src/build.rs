//! Builds images: recipe → tree → disk, with kernel and initramfs for those that boot → store.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use croft_proto::{ImageKind, ImageName, ImageVersion};

use crate::Error;
use crate::gather::{Gathered, gather};
use crate::packages::Cache;
use crate::recipe::{self, Kind, Recipe};
use crate::run::run_with;
use crate::store::{Parts, Store};
use crate::tree::{Content, Entry, Tree, walk};
use crate::{cpio, disk, elf, ext4, host, squashfs};

/// Where the agent lies in a system image.
const AGENT: &str = "usr/bin/croft-agent";

/// What a build works with.
#[derive(Debug, Clone)]
pub struct Workshop {
    /// Directory with `recipes/` and `overlay/`.
    pub sources: PathBuf,
    /// Fetched packages.
    pub packages_cache: PathBuf,
    /// The agent's static program.
    pub agent: PathBuf,
    /// Whether test variants are built, too.
    pub test: bool,
}

/// Builds the images `wanted`, all if there are none, and adds them to the store. `done` is told
/// of each.
///
/// # Errors
/// A name without recipe, or the first step that fails; images told of before that are in the
/// store.
pub fn build(
    shop: &Workshop,
    store: &Path,
    wanted: &[ImageName],
    mut done: impl FnMut(&ImageName, ImageVersion),
) -> Result<(), Error> {
    let agent = fs::read(&shop.agent).map_err(Error::read(&shop.agent))?;
    let needs = elf::needs(&agent).ok_or_else(|| Error::Elf {
        path: shop.agent.display().to_string(),
        fault: "it has no program headers".to_owned(),
    })?;
    if needs.loader.is_some() || !needs.libraries.is_empty() {
        return Err(Error::DynamicAgent { path: shop.agent.clone() });
    }
    let agent = elf::loaded_part(&agent).ok_or_else(|| Error::Elf {
        path: shop.agent.display().to_string(),
        fault: "it is shorter than its program headers say".to_owned(),
    })?;
    let recipes = select(all_recipes(shop)?, wanted)?;
    let cache = Cache::open(&shop.packages_cache)?;
    let store = Store::open(store)?;
    // An initramfs that several images use is made once.
    let mut archives = BTreeMap::new();
    let scratch = scratch()?;
    for recipe in recipes {
        let parts = match recipe.kind {
            Kind::Initramfs => continue,
            Kind::Data => data_image(shop, &recipe, &cache, scratch.path())?,
            Kind::System => {
                system_image(shop, &agent, &recipe, &cache, scratch.path(), &mut archives)?
            }
            Kind::Disk => disk_image(shop, &recipe, &cache, scratch.path(), &mut archives)?,
        };
        let version = store.add(&parts)?;
        done(&recipe.name, version);
    }
    Ok(())
}

fn scratch() -> Result<tempfile::TempDir, Error> {
    tempfile::tempdir().map_err(Error::write(std::env::temp_dir()))
}

fn all_recipes(shop: &Workshop) -> Result<Vec<Recipe>, Error> {
    let directory = shop.sources.join("recipes");
    let mut recipes = Vec::new();
    for name in recipe::names(&directory)? {
        let recipe = Recipe::load(&directory, &name)?;
        let test = if shop.test { recipe.test_variant() } else { None };
        recipes.push(recipe);
        recipes.extend(test);
    }
    Ok(recipes)
}

fn select(recipes: Vec<Recipe>, wanted: &[ImageName]) -> Result<Vec<Recipe>, Error> {
    let images: Vec<Recipe> = recipes.into_iter().filter(|r| r.kind != Kind::Initramfs).collect();
    for name in wanted {
        if !images.iter().any(|recipe| recipe.name == *name) {
            let known: Vec<&str> = images.iter().map(|recipe| recipe.name.as_str()).collect();
            return Err(Error::UnknownImage { name: name.to_string(), known: known.join(", ") });
        }
    }
    let chosen = |recipe: &Recipe| wanted.is_empty() || wanted.contains(&recipe.name);
    Ok(images.into_iter().filter(chosen).collect())
}

fn data_image(
    shop: &Workshop,
    recipe: &Recipe,
    cache: &Cache,
    scratch: &Path,
) -> Result<Parts, Error> {
    let place = place(scratch, recipe)?;
    let gathered = gather(recipe, &shop.sources.join("overlay"), cache)?;
    let disk = disk(recipe, &gathered.tree, &place)?;
    Ok(Parts {
        name: recipe.name.clone(),
        kind: ImageKind::Data,
        files: BTreeMap::from([("disk".to_owned(), disk)]),
        kernel_args: String::new(),
    })
}

fn system_image(
    shop: &Workshop,
    agent: &[u8],
    recipe: &Recipe,
    cache: &Cache,
    scratch: &Path,
    archives: &mut BTreeMap<ImageName, PathBuf>,
) -> Result<Parts, Error> {
    let place = place(scratch, recipe)?;
    let overlays = shop.sources.join("overlay");
    let mut gathered = gather(recipe, &overlays, cache)?;
    gathered.tree.insert(AGENT, Entry::File(0o755, Content::Bytes(agent.to_vec())))?;
    let disk = disk(recipe, &gathered.tree, &place)?;
    let kernel = kernel(recipe, &gathered)?;
    let mut files = BTreeMap::from([("disk".to_owned(), disk), ("kernel".to_owned(), kernel)]);
    if recipe.ram {
        let root = place.join("root");
        squashfs::write(&gathered.tree, &place, &root)?;
        files.insert("root".to_owned(), root);
    }
    files.extend(croft_initrd(shop, recipe, cache, scratch, archives)?);
    Ok(Parts {
        name: recipe.name.clone(),
        kind: ImageKind::System,
        files,
        kernel_args: recipe.kernel_args.clone(),
    })
}

/// A whole Debian system, which boots by its own boot loader, kernel and initramfs. Croft's initramfs
/// is beside it for nodes that shall need no boot loader.
fn disk_image(
    shop: &Workshop,
    recipe: &Recipe,
    cache: &Cache,
    scratch: &Path,
    archives: &mut BTreeMap<ImageName, PathBuf>,
) -> Result<Parts, Error> {
    let place = place(scratch, recipe)?;
    let mut gathered = gather(recipe, &shop.sources.join("overlay"), cache)?;
    host::complete(&mut gathered.tree, recipe.name.as_str(), &place)?;
    let kernel = kernel(recipe, &gathered)?;
    let file = place.join("disk");
    disk::write(&gathered, recipe.name.as_str(), recipe.size_mib, &place, &file)?;
    let mut files = BTreeMap::from([("disk".to_owned(), file), ("kernel".to_owned(), kernel)]);
    files.extend(croft_initrd(shop, recipe, cache, scratch, archives)?);
    Ok(Parts {
        name: recipe.name.clone(),
        kind: ImageKind::Disk,
        files,
        kernel_args: recipe.kernel_args.clone(),
    })
}

/// The initramfs that a recipe names, as the file `initrd`. One that several images use is made once.
fn croft_initrd(
    shop: &Workshop,
    recipe: &Recipe,
    cache: &Cache,
    scratch: &Path,
    archives: &mut BTreeMap<ImageName, PathBuf>,
) -> Result<Option<(String, PathBuf)>, Error> {
    let Some(name) = &recipe.initramfs else { return Ok(None) };
    if !archives.contains_key(name) {
        let recipe = Recipe::load(&shop.sources.join("recipes"), name)?;
        let overlays = shop.sources.join("overlay");
        archives.insert(name.clone(), initramfs(&recipe, &overlays, cache, scratch)?);
    }
    Ok(Some(("initrd".to_owned(), archives[name].clone())))
}

/// A directory of the recipe's own below `scratch`.
fn place(scratch: &Path, recipe: &Recipe) -> Result<PathBuf, Error> {
    let place = scratch.join(recipe.name.as_str());
    fs::create_dir_all(&place).map_err(Error::write(&place))?;
    Ok(place)
}

fn disk(recipe: &Recipe, tree: &Tree, place: &Path) -> Result<PathBuf, Error> {
    let layout = ext4::Layout {
        label: recipe.name.to_string(),
        size_mib: recipe.size_mib,
        // Shared data is never written to: it needs no journal.
        journal: recipe.kind == Kind::System,
    };
    let disk = place.join("disk");
    ext4::write(tree, &layout, place, &disk)?;
    Ok(disk)
}

fn kernel(recipe: &Recipe, gathered: &Gathered) -> Result<PathBuf, Error> {
    let mut kernels = Vec::new();
    for boot in gathered.roots.iter().map(|root| root.join("boot")).filter(|boot| boot.is_dir()) {
        kernels.extend(walk(&boot)?.into_iter().filter(|(name, _)| name.starts_with("vmlinuz-")));
    }
    match kernels.as_slice() {
        [(_, kernel)] => Ok(kernel.clone()),
        _ => Err(Error::NotInPackages {
            path: "exactly one /boot/vmlinuz-*".to_owned(),
            wanted_by: format!("recipe {}", recipe.name),
        }),
    }
}

fn initramfs(
    recipe: &Recipe,
    overlays: &Path,
    cache: &Cache,
    scratch: &Path,
) -> Result<PathBuf, Error> {
    let place = place(scratch, recipe)?;
    let gathered = gather(recipe, overlays, cache)?;
    let archive = cpio::archive(&gathered.tree)?;
    // An emulated processor unpacks lz4 so much faster than zstd that the longer file pays.
    let mut command = Command::new("lz4");
    command.args(["-l", "-9", "-q", "-c"]);
    let mut packed = run_with(&mut command, "lz4", Some(archive))?;
    // This format ends with a length of zero: without one the kernel would take what follows for
    // a length. The loader puts the node's own archive behind this one, at a multiple of 4.
    packed.extend([0; 4]);
    cpio::pad(&mut packed, 512);
    let path = place.join("initrd");
    let mut file = fs::File::create(&path).map_err(Error::write(&path))?;
    file.write_all(&packed).map_err(Error::write(&path))?;
    Ok(path)
}
