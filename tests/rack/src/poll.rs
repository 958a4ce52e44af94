//! Waiting for a condition instead of sleeping.

use std::time::Duration;

use crate::RackError;

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks with `probe` until it gives a value, which is returned. A look that itself takes too long
/// is cut off at the deadline.
///
/// # Errors
/// [`RackError::Deadline`] naming `what`.
pub async fn wait_until<T, F, Fut>(
    deadline: Duration,
    what: &str,
    mut probe: F,
) -> Result<T, RackError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let looking = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(deadline, looking)
        .await
        .map_err(|_| RackError::Deadline { what: what.to_owned(), deadline })
}
