//! No secret in a log, an event, a console or a process's arguments.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::site::Site;

/// Fields of bootd's boot records that hold a secret.
const FIELDS: [&str; 3] = ["token", "key", "chap"];

/// Shorter values could stand anywhere by chance.
const SHORTEST: usize = 24;

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Every secret of the running site, with what it is.
fn secrets(site: &Site) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for path in files(&site.dir().join("bootd/boots"))? {
        let record: Value = serde_json::from_slice(&read(&path)?)?;
        for field in FIELDS {
            if let Some(secret) = record.get(field).and_then(Value::as_str) {
                found.push((format!("{field} of {}", path.display()), secret.into()));
            }
        }
    }
    let profile: toml::Table = toml::from_str(&String::from_utf8(read(&site.profile())?)?)?;
    let token = profile.get("token").and_then(toml::Value::as_str).context("no token")?;
    found.push(("the operator's token".to_owned(), token.into()));
    let password = site.rack.bmc_password()?;
    found.push(("the BMCs' password".to_owned(), password.expose().into()));
    Ok(found)
}

/// Everything that others may read: logs, events, control's store, consoles, arguments.
fn public(site: &Site) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = vec![
        site.rack.dir().join("rack.log"),
        site.dir().join("bootd.log"),
        site.dir().join("control.log"),
        site.dir().join("bootd/events.jsonl"),
        site.dir().join("bootd/desired.state"),
    ];
    paths.extend(files(&site.dir().join("control"))?.into_iter().filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("control.db"))
    }));
    for node in site.rack.nodes() {
        if node.console_len()? > 0 {
            paths.push(node.console_path());
        }
    }
    for process in files(Path::new("/proc"))? {
        let arguments = process.join("cmdline");
        // Processes come and go meanwhile.
        if arguments.exists() {
            paths.push(arguments);
        }
    }
    Ok(paths)
}

/// Looks for every secret in every public place; returns how many of each were compared.
pub fn none_is_public(site: &Site) -> anyhow::Result<(usize, usize)> {
    let secrets = secrets(site)?;
    ensure!(secrets.len() > 2, "no node has a secret: there is nothing to look for");
    for (what, secret) in &secrets {
        ensure!(secret.len() >= SHORTEST, "{what} is too short to be a secret");
    }
    let places = public(site)?;
    for place in &places {
        let Ok(text) = std::fs::read(place) else {
            ensure!(place.starts_with("/proc"), "{} cannot be read", place.display());
            continue;
        };
        for (what, secret) in &secrets {
            let leaked = text.windows(secret.len()).any(|window| window == secret);
            ensure!(!leaked, "{what} stands in {}", place.display());
        }
    }
    Ok((secrets.len(), places.len()))
}
