//! However a rack ends, nothing of it is left.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::common::{Bmc, CROFT_RACK};
use croft_rack::Rack;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use tokio::signal::unix::{SignalKind, signal};

/// Every process of one rack has it in its environment.
const MARK: &str = "CROFT_RACK_TEST_MARK";
/// Makes the copy of this program that runs inside do its part, and say how it ends.
const PART: &str = "CROFT_RACK_TEST_PART";
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A rack with a machine that is on and a daemon that has left its parents.
struct Running {
    outer: Child,
    mark: String,
    /// Namespaces, as the links below /proc/PID/ns name them.
    namespaces: Vec<String>,
    place: PathBuf,
    _dir: tempfile::TempDir,
}

/// The part inside: power on, leave a daemon behind, tell the namespaces, then end or stay.
async fn inside(part: &str) {
    let rack = Rack::from_env().expect("inside a rack");
    let node = rack.node("n1").expect("n1");
    assert_eq!(Bmc::of(&rack, &node).reset("On").await, 204);
    let daemon = Command::new("setsid").args(["--fork", "sleep", "1000"]).status();
    assert!(daemon.expect("setsid").success());
    for kind in ["pid", "net", "mnt", "user"] {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("namespace");
        println!("namespace {}", link.display());
    }
    for namespace in ["fabric", "internet"] {
        let mut readlink = rack.control_command("ip");
        readlink.args(["netns", "exec", namespace, "readlink", "/proc/self/ns/net"]);
        let output = readlink.output().await.expect("readlink");
        print!("namespace {}", String::from_utf8_lossy(&output.stdout));
    }
    match part {
        "crash" => {
            println!("ready");
            std::process::abort()
        }
        "stubborn" => {
            // Deaf to a polite request: it is received, and nothing follows.
            let _deaf = signal(SignalKind::terminate()).expect("signal");
            println!("ready");
            std::future::pending().await
        }
        _ => {
            println!("ready");
            std::future::pending().await
        }
    }
}

/// Starts a rack whose inside, this module's test of that name, does `part`, and waits until it is
/// ready.
fn start(test: &str, part: &str, prefix: &[&str]) -> Running {
    let test = format!("ending::{test}");
    let dir = tempfile::tempdir().expect("temporary directory");
    let place = dir.path().join("rack");
    std::fs::create_dir(&place).expect("directory");
    // Copies, so that another user can run them wherever the originals are.
    let copy = |from: &Path, name: &str| -> PathBuf {
        let to = dir.path().join(name);
        std::fs::copy(from, &to).expect("copy");
        to
    };
    let rack = copy(Path::new(CROFT_RACK), "croft-rack");
    let this = copy(&std::env::current_exe().expect("path of the test"), "inside");
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode");
    };
    open(dir.path());
    if !prefix.is_empty() {
        std::os::unix::fs::chown(&place, Some(NOBODY), Some(NOBODY)).expect("chown");
    }
    let mark = format!("{}-{}", std::process::id(), test);
    let mut words: Vec<&std::ffi::OsStr> = prefix.iter().map(std::ffi::OsStr::new).collect();
    words.push(rack.as_os_str());
    let mut outer = Command::new(words[0])
        .args(&words[1..])
        .args(["enter", "--nodes", "1", "--dir"])
        .arg(&place)
        .arg("--")
        .arg(this)
        .args(["--exact", &test, "--nocapture"])
        .env(PART, part)
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("croft-rack starts");
    let mut namespaces = Vec::new();
    let output = BufReader::new(outer.stdout.take().expect("stdout"));
    for line in output.lines() {
        let line = line.expect("line");
        if let Some(namespace) = line.split_once("namespace ").map(|(_, rest)| rest) {
            namespaces.push(namespace.to_owned());
        }
        if line == "ready" {
            break;
        }
    }
    assert_eq!(namespaces.len(), 6, "the inside did not get ready");
    let running = Running { outer, mark, namespaces, place, _dir: dir };
    // Unless it crashed just now: otherwise the search below would prove nothing.
    if part != "crash" {
        let found = running.survivors().join("\n");
        for name in ["qemu-system", "ovs-vswitchd", "sleep", "croft-rack"] {
            assert!(found.contains(name), "no {name} among\n{found}");
        }
    }
    running
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.outer.id()).expect("pid"))
    }

    fn end(mut self, signal: Option<Signal>) -> ExitStatus {
        if let Some(signal) = signal {
            kill(self.pid(), signal).expect("signal");
        }
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.outer.try_wait().expect("wait") {
                break status;
            }
            assert!(begun.elapsed() < DEADLINE, "croft-rack does not end");
            std::thread::sleep(POLL);
        };
        // A killed croft-rack is gone before its namespace is; every other end waits for it.
        let patience = if signal == Some(Signal::SIGKILL) { DEADLINE } else { Duration::ZERO };
        let begun = Instant::now();
        loop {
            let survivors = self.survivors();
            if survivors.is_empty() {
                return status;
            }
            assert!(begun.elapsed() <= patience, "left behind:\n{}", survivors.join("\n"));
            std::thread::sleep(POLL);
        }
    }

    /// Processes of the rack and holders of its namespaces, other than the process outside.
    fn survivors(&self) -> Vec<String> {
        let mut found = Vec::new();
        for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
            let path = process.path();
            let Ok(pid) = process.file_name().to_string_lossy().parse::<u32>() else { continue };
            if pid == self.outer.id() {
                continue;
            }
            // A process that ends while it is looked at has nothing to show.
            let read = |file: &str| std::fs::read(path.join(file)).unwrap_or_default();
            let marked = contains(&read("environ"), self.mark.as_bytes());
            let inside = ["pid", "net", "mnt", "user"].iter().any(|kind| {
                std::fs::read_link(path.join("ns").join(kind)).is_ok_and(|link| {
                    self.namespaces.iter().any(|namespace| link.as_os_str() == &namespace[..])
                })
            });
            // A namespace can also live on as a mounted file.
            let mounted =
                self.namespaces.iter().any(|n| contains(&read("mountinfo"), n.as_bytes()));
            if marked || inside || mounted {
                let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Runs `test` outside, or its part if this is the copy inside.
fn both(test: impl FnOnce()) {
    if let Ok(part) = std::env::var(PART) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(inside(&part));
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    test();
}

#[test]
fn interrupted() {
    both(|| {
        // The command inside dies of the SIGTERM that it is asked to end with.
        let status = start("interrupted", "wait", &[]).end(Some(Signal::SIGINT));
        assert_eq!(status.code(), Some(128 + Signal::SIGTERM as i32));
    });
}

#[test]
fn terminated() {
    both(|| {
        let status = start("terminated", "wait", &[]).end(Some(Signal::SIGTERM));
        assert_eq!(status.code(), Some(128 + Signal::SIGTERM as i32));
    });
}

#[test]
fn terminated_with_a_deaf_command() {
    both(|| {
        let running = start("terminated_with_a_deaf_command", "stubborn", &[]);
        // The second request is not a question.
        kill(running.pid(), Signal::SIGTERM).expect("signal");
        let begun = Instant::now();
        while !std::fs::read_to_string(running.place.join("rack.log"))
            .is_ok_and(|log| log.contains("ending the rack"))
        {
            assert!(begun.elapsed() < DEADLINE, "the request did not arrive");
            std::thread::sleep(POLL);
        }
        let status = running.end(Some(Signal::SIGTERM));
        assert_eq!(status.code(), Some(137));
    });
}

#[test]
fn killed() {
    both(|| {
        let status = start("killed", "wait", &[]).end(Some(Signal::SIGKILL));
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    });
}

#[test]
fn crashed() {
    both(|| {
        let status = start("crashed", "crash", &[]).end(None);
        assert_eq!(status.code(), Some(128 + Signal::SIGABRT as i32));
    });
}

/// Debian's user and group for those who own nothing.
const NOBODY: u32 = 65534;

#[test]
fn killed_as_an_ordinary_user() {
    both(|| {
        // As root the test becomes somebody else; any other user is ordinary already.
        let becoming = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let prefix: &[&str] = if getuid().is_root() { &becoming } else { &[] };
        let running = start("killed_as_an_ordinary_user", "wait", prefix);
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.outer.id()));
        let status = status.expect("process status");
        assert!(!status.contains("Uid:\t0\t"), "it runs as root:\n{status}");
        let status = running.end(Some(Signal::SIGKILL));
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    });
}

#[test]
fn the_status_of_the_command_is_the_status_of_the_rack() {
    both(|| {
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = |command: &[&str]| {
            Command::new(CROFT_RACK)
                .args(["enter", "--nodes", "1", "--dir"])
                .arg(dir.path())
                .arg("--")
                .args(command)
                .output()
                .expect("croft-rack starts")
        };
        assert_eq!(run(&["sh", "-c", "exit 7"]).status.code(), Some(7));
        assert_eq!(run(&["true"]).status.code(), Some(0));
        let missing = run(&["/no/such/program"]);
        assert_eq!(missing.status.code(), Some(1));
        let said = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(said.contains("/no/such/program"), "{said}");
    });
}

#[test]
fn another_command_can_join_while_the_rack_lives() {
    both(|| {
        let running = start("another_command_can_join_while_the_rack_lives", "wait", &[]);
        let place = running.place.clone();
        let join = || {
            Command::new(CROFT_RACK)
                .args(["exec", "--dir"])
                .arg(&place)
                .args(["--", "readlink", "/proc/self/ns/net", "/proc/self/ns/pid"])
                .output()
                .expect("croft-rack starts")
        };
        let output = join();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let links: Vec<&str> = said.lines().collect();
        assert_eq!(links.len(), 2, "{output:?}");
        for link in links {
            assert!(running.namespaces.iter().any(|n| n == link), "{link} is not the rack's");
        }
        running.end(Some(Signal::SIGTERM));
        let output = join();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("no rack runs in"), "{said}");
    });
}
