//! SIGHUP: the configuration file is read again, and taken whole or not at all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use croft_proto::{FarmName, with_causes};
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
    status: Option<SocketAddr>,
    /// Volumes belong to it. None under control.
    site: Option<FarmName>,
}

impl Fixed {
    /// That of a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            state_dir: config.state_dir.clone(),
            image_dir: config.image_dir.clone(),
            ipxe_dir: config.ipxe_dir.clone(),
            status: config.status,
            site: match &config.source {
                Source::Control(_) => None,
                Source::Alone(plan) => Some(plan.site.clone()),
            },
        }
    }

    /// What is another in `next`, if anything is.
    fn differs(&self, next: &Self) -> Option<&'static str> {
        let same = (&self.state_dir, &self.image_dir, &self.ipxe_dir)
            == (&next.state_dir, &next.image_dir, &next.ipxe_dir);
        match (&self.site, &next.site) {
            _ if !same => Some("a directory is another one: restart bootd for that"),
            _ if self.status != next.status => {
                Some("the address of [status] is another one: restart bootd for that")
            }
            (Some(_), None) => Some("it is under control now: restart bootd for that"),
            (ours, theirs) if ours != theirs => {
                Some("site is another one: volumes belong to it, so it cannot change")
            }
            _ => None,
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
    if let Some(reason) = fixed.differs(&Fixed::of(&config)) {
        return Err(reason.to_owned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alone::plan::tests::FILE;

    #[test]
    fn directories_and_the_site_cannot_change() {
        let fixed = |text: &str| Fixed::of(&Config::parse(text).expect("a good file"));
        let now = fixed(FILE);
        assert_eq!(now.differs(&now), None);
        assert_eq!(now.differs(&fixed(&FILE.replace("\"guests\"", "\"visitors\""))), None);
        let moved = now.differs(&fixed(&FILE.replace("croft/bootd", "croft/other")));
        assert!(moved.is_some_and(|reason| reason.contains("directory")));
        for text in [FILE.replace("\"home\"", "\"office\""), FILE.replace("site = \"home\"\n", "")]
        {
            let renamed = now.differs(&fixed(&text));
            assert!(renamed.is_some_and(|reason| reason.contains("site")), "{renamed:?}");
        }
    }

    #[test]
    fn the_status_page_cannot_move() {
        let fixed = |text: &str| Fixed::of(&Config::parse(text).expect("a good file"));
        let here = format!("{FILE}\n[status]\nlisten = \"10.255.0.2:9180\"\n");
        let there = here.replace("9180", "9181");
        for (now, next) in [(FILE, &*here), (&*here, FILE), (&*here, &*there)] {
            let moved = fixed(now).differs(&fixed(next));
            assert!(moved.is_some_and(|reason| reason.contains("[status]")), "{moved:?}");
        }
        assert_eq!(fixed(&here).differs(&fixed(&here)), None);
    }
}
