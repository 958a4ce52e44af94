//! Kernel modules: which files a list of names stands for, in the order in which they load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::Error;
use crate::elf;
use crate::tree::walk;

/// The modules of one kernel, found in its unpacked package.
#[derive(Debug)]
pub struct Modules {
    /// Module name (with `_`) → path in the tree, path on the host.
    files: BTreeMap<String, (String, PathBuf)>,
}

impl Modules {
    /// Finds the modules below `lib/modules` of these unpacked packages.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn find(roots: &[PathBuf]) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        for top in roots.iter().map(|root| root.join("lib/modules")).filter(|top| top.is_dir()) {
            for (path, host) in walk(&top)? {
                let file = path.rsplit('/').next().unwrap_or(&path);
                if let Some(name) = file.strip_suffix(".ko") {
                    files.insert(name.replace('-', "_"), (format!("usr/lib/modules/{path}"), host));
                }
            }
        }
        Ok(Self { files })
    }

    /// The files of `wanted` and of what they depend on, each once and after its dependencies.
    ///
    /// # Errors
    /// A module that the kernel does not have, or that cannot be read.
    pub fn in_load_order(
        &self,
        recipe: &str,
        wanted: &[String],
    ) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        for name in wanted {
            self.visit(name, &format!("recipe {recipe}"), &mut done, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        wanted_by: &str,
        done: &mut BTreeSet<String>,
        order: &mut Vec<(String, PathBuf)>,
    ) -> Result<(), Error> {
        let name = name.replace('-', "_");
        if !done.insert(name.clone()) {
            return Ok(());
        }
        let Some((path, host)) = self.files.get(&name) else {
            return Err(Error::NotInPackages {
                path: format!("kernel module {name}"),
                wanted_by: wanted_by.to_owned(),
            });
        };
        let bytes = std::fs::read(host).map_err(Error::read(host))?;
        let depends = elf::module_dependencies(&bytes).ok_or_else(|| Error::Elf {
            path: path.clone(),
            fault: "it has no section table".to_owned(),
        })?;
        for other in depends {
            self.visit(&other, &format!("module {name}"), done, order)?;
        }
        order.push((path.clone(), host.clone()));
        Ok(())
    }
}
