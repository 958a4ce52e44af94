//! SIGHUP: the configuration file is read again, and taken whole or not at all.

use std::path::PathBuf;
use std::sync::Arc;

use croft_proto::with_causes;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::alone::Clerk;
use crate::config::{Config, Source};

/// Where the configuration is, and who says when to read it again.
#[derive(Debug, Clone)]
pub struct Reload {
    /// The file.
    pub path: PathBuf,
    /// Notified at each SIGHUP.
    pub signal: Arc<Notify>,
}

/// What cannot change while bootd runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fixed {
    state_dir: PathBuf,
    image_dir: PathBuf,
    ipxe_dir: PathBuf,
}

impl Fixed {
    /// That of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            state_dir: config.state_dir.clone(),
            image_dir: config.image_dir.clone(),
            ipxe_dir: config.ipxe_dir.clone(),
        }
    }
}

/// Reloads until `cancel`. Under control there is nothing that a reload could change.
pub(crate) async fn run(
    reload: Reload,
    fixed: Fixed,
    clerk: Option<Arc<Clerk>>,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = reload.signal.notified() => {}
        }
        let path = reload.path.display();
        match &clerk {
            None => tracing::info!(%path, "not read again: control says what is served"),
            Some(clerk) => match once(&reload, &fixed, clerk).await {
                Ok(summary) => tracing::info!(%path, summary, "took the configuration"),
                Err(reason) => {
                    tracing::error!(%path, reason, "kept the old configuration");
                }
            },
        }
    }
}

async fn once(reload: &Reload, fixed: &Fixed, clerk: &Clerk) -> Result<String, String> {
    let path = reload.path.clone();
    let loaded = tokio::task::spawn_blocking(move || Config::load(&path)).await;
    let config = match loaded {
        Ok(Ok(config)) => config,
        Ok(Err(error)) => return Err(with_causes(&error)),
        Err(error) => return Err(error.to_string()),
    };
    if Fixed::of(&config) != *fixed {
        return Err("a directory is another one: restart bootd for that".to_owned());
    }
    let summary = config.summary();
    let Source::Alone(plan) = config.source else {
        return Err("it is under control now: restart bootd for that".to_owned());
    };
    match clerk.reload(*plan).await {
        Some(Ok(())) => Ok(summary),
        Some(Err(error)) => Err(with_causes(&error)),
        None => Err("bootd is stopping".to_owned()),
    }
}
