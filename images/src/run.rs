//! Runs the tools that a build needs.

use std::env;
use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::Error;

/// Longest part of a tool's output that an error message repeats, in bytes.
const TAIL: usize = 600;

/// Where Debian keeps the tools that it takes for root's alone: not in an ordinary user's PATH.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A tool, by its place in PATH or beside root's tools.
pub(crate) fn tool(program: &str) -> Command {
    Command::new(find(program, env::var_os("PATH").as_deref()))
}

/// The first such file; the bare name if there is none, so that the error at its start names it.
fn find(program: &str, path: Option<&OsStr>) -> PathBuf {
    let own = path.map(|path| env::split_paths(path).collect::<Vec<_>>()).unwrap_or_default();
    let places = own.into_iter().chain(SYSTEM.map(PathBuf::from));
    places.map(|dir| dir.join(program)).find(|file| file.is_file()).unwrap_or(program.into())
}

/// Runs `command` and returns what it printed; `package` is what to install if it is missing.
///
/// # Errors
/// The tool is missing, or ended with a status other than 0.
pub(crate) fn run(command: &mut Command, package: &'static str) -> Result<Vec<u8>, Error> {
    run_with(command, package, None)
}

/// As [`run`], with bytes for its standard input.
pub(crate) fn run_with(
    command: &mut Command,
    package: &'static str,
    input: Option<Vec<u8>>,
) -> Result<Vec<u8>, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let start = |source| Error::Start { program: program.clone(), package, source };
    command
        .env("LC_ALL", "C")
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    let output = std::thread::scope(|scope| {
        let pipe = child.stdin.take();
        // A tool that ends before it has read everything fails by its status.
        let writer = scope.spawn(move || match (pipe, input) {
            (Some(mut pipe), Some(bytes)) => pipe.write_all(&bytes).is_ok(),
            _ => true,
        });
        let output = child.wait_with_output().map_err(start)?;
        match writer.join() {
            Ok(true) => Ok(output),
            _ => Err(failed(command, &output)),
        }
    })?;
    if output.status.success() { Ok(output.stdout) } else { Err(failed(command, &output)) }
}

/// The error that names the command and the end of what it printed.
pub(crate) fn failed(command: &Command, output: &Output) -> Error {
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let text = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    let from = text.len().saturating_sub(TAIL);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let output = if text.is_empty() { output.status.to_string() } else { text[from..].to_owned() };
    Error::Tool { command: line.chars().take(200).collect(), output }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_tools_are_found_by_any_user() {
        let user = Some(OsStr::new("/usr/local/bin:/usr/bin:/bin"));
        for program in ["mke2fs", "debugfs", "e2fsck"] {
            let found = find(program, user);
            assert!(SYSTEM.iter().any(|dir| found.starts_with(dir)), "{found:?}");
            assert_eq!(find(program, None), found);
        }
        // What PATH has goes first, and what nobody has keeps its name.
        let dir = tempfile::tempdir().expect("directory");
        let own = dir.path().join("mke2fs");
        std::fs::write(&own, "").expect("written");
        assert_eq!(find("mke2fs", Some(dir.path().as_os_str())), own);
        assert_eq!(find("no-such-tool", user), PathBuf::from("no-such-tool"));
    }
}
