//! What the rooms of volumes and images have to tell an operator, without knowing who listens.

use std::sync::OnceLock;

use croft_proto::{FarmName, ImageVersion};

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A farm's volumes keep as much as its warning threshold says. `None` for those of no farm.
    Threshold {
        /// The farm.
        farm: Option<FarmName>,
    },
    /// A write was refused because there is no room for new blocks.
    Refused {
        /// The farm.
        farm: Option<FarmName>,
        /// Its own quota is used up; otherwise the store is full.
        quota: bool,
    },
    /// A chunk of an image is not what its manifest names. It is not served.
    CorruptChunk {
        /// The image.
        version: ImageVersion,
        /// Number of the chunk; chunks have [`croft_proto::CHUNK_SIZE`] bytes.
        chunk: u64,
    },
}

type Listener = Box<dyn Fn(Report) + Send + Sync>;

/// Where reports go: to one listener, if there is one, and to the log otherwise.
#[derive(Default)]
pub(crate) struct Observer {
    listener: OnceLock<Listener>,
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observer").field("heard", &self.listener.get().is_some()).finish()
    }
}

impl Observer {
    /// Sets the listener; the first one stays. It must not wait.
    pub fn listen(&self, listener: impl Fn(Report) + Send + Sync + 'static) {
        let mut listener = Some(Box::new(listener) as Listener);
        self.listener.get_or_init(|| listener.take().expect("taken once"));
    }

    /// Tells.
    pub fn tell(&self, report: Report) {
        match self.listener.get() {
            Some(listener) => listener(report),
            None => tracing::warn!(?report, "nobody listens"),
        }
    }
}
