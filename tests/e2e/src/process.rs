//! Programs that must succeed.

use anyhow::bail;
use tokio::process::Command;

/// Runs a program to its end and returns its output.
///
/// # Errors
/// It does not start, or ends with another status than 0; the message holds what it complained.
pub async fn checked(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().await?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{:?} ended with {}: {error}", command.as_std(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
