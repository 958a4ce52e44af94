//! Waiting for conditions, never for time.

use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep};

/// Asks every 200 ms until `condition` gives a value; errors end the wait at once.
///
/// # Errors
/// `limit` has passed; the message names `what`.
pub async fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain: {what}", limit.as_secs());
        }
        sleep(Duration::from_millis(200)).await;
    }
}
