//! Programs of a benchmark: servers that live as long as their guard, tools that must end in time
//! with success, both pinned to a CPU.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// CPU of the servers under test.
pub const SERVER_CPU: usize = 0;
/// CPU of the programs that load them.
pub const CLIENT_CPU: usize = 1;
/// A server may have a large file to remove or to write before it answers, on a busy disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program built beside this one, or in `CROFT_BIN_DIR`.
///
/// # Errors
/// It was not built.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let path = match std::env::var_os("CROFT_BIN_DIR") {
        Some(dir) => PathBuf::from(dir).join(name),
        None => std::env::current_exe()?.with_file_name(name),
    };
    ensure!(path.exists(), "{} is missing: run make build", path.display());
    Ok(path)
}

/// A command that runs on one CPU only.
pub fn pinned(cpu: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpu.to_string()]).arg(program);
    command
}

/// A server. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Server {
    /// Starts it with its output going to `log`, which is emptied first.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name}; install it with tests/install-packages"))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), child })
    }

    /// Process id. The pinning wrapper replaces itself by the program, so it is the program's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn output(&self) -> anyhow::Result<String> {
        let bytes = std::fs::read(&self.log)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// It has; the message holds the end of its log.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}:\n{}", self.name, tail(&self.output()?));
        }
        Ok(())
    }

    /// Asks every 10 ms until `ready` gives a value.
    ///
    /// # Errors
    /// The server has ended, or [`PATIENCE`] is over; the message holds the end of its log.
    pub fn until<T>(
        &mut self,
        what: &str,
        mut ready: impl FnMut(&Self) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.check()?;
            if let Some(value) = ready(self)? {
                return Ok(value);
            }
            if Instant::now() > deadline {
                bail!("{}: not in time: {what}\n{}", self.name, tail(&self.output()?));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory in KiB, once it has stayed the same for half a second.
    ///
    /// # Errors
    /// The server has ended, or its memory does not come to rest.
    pub fn resident_kib(&mut self) -> anyhow::Result<u64> {
        let mut last = 0;
        let mut same = 0;
        self.until("its memory comes to rest", |server| {
            let now = vm_rss_kib(server.pid())?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
            Ok((same >= 50).then_some(now))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself: nothing is left to kill then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vm_rss_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value.with_context(|| format!("{path} names no VmRSS"))?.parse()?)
}

/// Runs a tool to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, fails, or runs longer than `limit`; it is killed then.
pub fn finish(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let mut out = tempfile::tempfile().context("making a file for a tool's output")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out.try_clone()?)
        .spawn()
        .with_context(|| format!("starting {command:?}; see tests/install-packages"))?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    out.rewind()?;
    let mut bytes = Vec::new();
    out.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => bail!("{command:?} ended with {status}:\n{}", tail(&text)),
        None => bail!("{command:?} did not end in {} s:\n{}", limit.as_secs(), tail(&text)),
    }
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_or_does_not_end_is_an_error_with_its_output() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            finish(&mut command, Duration::from_secs(5))
        };
        assert_eq!(sh("echo well").expect("succeeds"), "well\n");
        let error = sh("echo badly >&2; exit 3").expect_err("fails").to_string();
        assert!(error.contains("badly"), "{error}");
        let mut endless = Command::new("sleep");
        let error = finish(endless.arg("60"), Duration::from_millis(50)).expect_err("killed");
        assert!(error.to_string().contains("did not end"), "{error}");
    }
}
