//! Reads every chunk of every image again and again and compares it with its manifest, slowly, so
//! that damage is known before a node meets it. What is found is reported by the image store.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::volume::{ImageStore, VolumeError};

/// Bytes per second that it reads.
const RATE: u64 = 16 << 20;

/// Pause between two rounds.
const ROUND: Duration = Duration::from_secs(3600);

/// Scrubs until `cancel`.
pub(crate) async fn run(images: Arc<ImageStore>, cancel: CancellationToken) {
    let pace = Duration::from_nanos(croft_proto::CHUNK_SIZE * 1_000_000_000 / RATE);
    let rounds = async {
        loop {
            round(&images, pace).await;
            tokio::time::sleep(ROUND).await;
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = rounds => {}
    }
}

/// Reads every chunk once, one per `pace`. A fault of one image does not keep it from the others.
async fn round(images: &Arc<ImageStore>, pace: Duration) {
    let list = match blocking(images, ImageStore::list).await {
        Ok(list) => list,
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            return tracing::warn!(error, "images cannot be listed for a scrub");
        }
    };
    for version in list.into_iter().map(|info| info.version) {
        for chunk in 0.. {
            match blocking(images, move |images| images.verify(version, chunk)).await {
                Ok(true) => {}
                Ok(false) => break,
                // It may have been removed meanwhile; one corrupt chunk leaves the next ones.
                Err(VolumeError::Io { .. }) => {
                    tracing::warn!(%version, chunk, "a chunk of an image is not what it was");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%version, error, "an image cannot be scrubbed");
                    break;
                }
            }
            tokio::time::sleep(pace).await;
        }
    }
}

/// Runs `step` in a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(
    images: &Arc<ImageStore>,
    step: impl FnOnce(&ImageStore) -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let images = Arc::clone(images);
    let done = tokio::task::spawn_blocking(move || step(&images)).await;
    done.unwrap_or_else(|error| {
        Err(VolumeError::Store {
            operation: "scrubbing",
            path: std::path::PathBuf::new(),
            source: std::io::Error::other(error),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::test_support::data_image;
    use crate::volume::Report;

    #[tokio::test]
    async fn a_round_reports_each_corrupt_chunk_once_and_goes_on() {
        let dir = tempfile::tempdir().expect("directory");
        let version = data_image(dir.path(), &[5; 3 << 20]);
        let images = Arc::new(ImageStore::open(dir.path()));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&reports);
        images.listen(move |report| heard.lock().expect("lock").push(report));
        // Kept open, as a volume would: what was found stays known.
        let _disk = images.open_disk(version).expect("open");
        round(&images, Duration::ZERO).await;
        assert_eq!(*reports.lock().expect("lock"), []);
        let path = images.blob_path(version, "disk").expect("there");
        let mut content = std::fs::read(&path).expect("read");
        content[1 << 20] = 6;
        content[(3 << 20) - 1] = 6;
        std::fs::write(&path, content).expect("written");
        round(&images, Duration::ZERO).await;
        round(&images, Duration::ZERO).await;
        let corrupt = |chunk| Report::CorruptChunk { version, chunk };
        assert_eq!(*reports.lock().expect("lock"), [corrupt(1), corrupt(2)]);
    }
}
