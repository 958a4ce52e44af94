//! A bootd with a configuration file, an image store and nothing else, in namespaces of its own.
//!
//! ```text
//!   node0   ──veth──  seg100   (fabric, where bootd runs)
//!   other0  ──veth──  seg101   (fabric)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use croft_proto::{BlobHash, ImageFile, ImageKind, ImageVersion, Manifest};
use croft_test_support::namespace;
use nix::sys::signal::Signal;

const BOOTD: &str = env!("CARGO_BIN_EXE_croft-bootd");

/// True inside; outside it runs the test `name` inside, asserts that it passed, and returns false.
pub fn enter(name: &str) -> bool {
    namespace::enter(name, &[("node0", "seg100"), ("other0", "seg101")])
}

/// What `croft-bootd` with these arguments says on both outputs, and its exit status.
pub fn output(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(BOOTD).args(arguments).output().expect("bootd runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// Asks until there is an answer; fails after half a minute.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Files of a site. Dropping it kills its bootd.
pub struct Site {
    dir: PathBuf,
    pub kernel: Vec<u8>,
    pub image: ImageVersion,
    bootd: Option<Child>,
}

impl Site {
    /// A configuration with these segments and rules, iPXE's programs and one image.
    pub fn new(dir: &Path, rules: &str) -> Self {
        std::fs::create_dir(dir.join("ipxe")).expect("made");
        for program in ["undionly.kpxe", "snponly.efi"] {
            std::fs::write(dir.join("ipxe").join(program), format!("this is {program}"))
                .expect("written");
        }
        let kernel: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
        let image = image(dir, &kernel);
        let site = Self { dir: dir.to_owned(), kernel, image, bootd: None };
        site.write(rules);
        site
    }

    /// A site in namespaces of the test's own, and its directory; none outside, where the test `name`
    /// has run inside and passed.
    pub fn inside(name: &str, rules: &str) -> Option<(tempfile::TempDir, Self)> {
        if !enter(name) {
            return None;
        }
        let dir = tempfile::tempdir().expect("temporary directory");
        let site = Self::new(dir.path(), rules);
        Some((dir, site))
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("bootd.toml")
    }

    /// Writes the configuration anew.
    pub fn write(&self, rules: &str) {
        let shown = self.dir.display();
        let head = format!(
            "state_dir = '{shown}/state'\nimage_dir = '{shown}/images'\nipxe_dir = '{shown}/ipxe'\n"
        );
        std::fs::write(self.config(), head + rules).expect("written");
    }

    /// Starts bootd in the fabric.
    pub fn start(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log"));
        let bootd = Command::new("ip")
            .args(["netns", "exec", "fabric", BOOTD, "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("bootd starts");
        self.bootd = Some(bootd);
    }

    /// The program with these arguments, in the fabric.
    pub fn program(arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "fabric", BOOTD]).args(arguments).stdin(Stdio::null());
        command
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Its journal of events.
    pub fn events(&self) -> String {
        std::fs::read_to_string(self.dir.join("state/events.jsonl")).unwrap_or_default()
    }

    /// Its process id. `ip netns exec` has become bootd itself.
    pub fn pid(&self) -> u32 {
        self.bootd.as_ref().expect("bootd runs").id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("signalled");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let mut bootd = self.bootd.take().expect("bootd runs");
        until("bootd ends by itself", || bootd.try_wait().expect("waited for"))
    }

    /// Sends it a signal and waits for its end.
    pub fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        self.signal(signal);
        self.bootd.take().expect("bootd runs").wait().expect("it ends")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        if let Some(mut bootd) = self.bootd.take() {
            let killed = bootd.kill().and_then(|()| bootd.wait());
            assert!(killed.is_ok() || std::thread::panicking(), "bootd could not be killed");
        }
    }
}

/// An image store with one system image.
fn image(dir: &Path, kernel: &[u8]) -> ImageVersion {
    let store = dir.join("images");
    for part in ["blobs", "manifests", "names"] {
        std::fs::create_dir_all(store.join(part)).expect("made");
    }
    let disk = vec![7; 1 << 20];
    let mut files = BTreeMap::new();
    for (name, bytes) in [("disk", &disk[..]), ("initrd", b"initrd"), ("kernel", kernel)] {
        let blob = BlobHash::of(bytes);
        std::fs::write(store.join("blobs").join(blob.to_string()), bytes).expect("written");
        let chunks = if name == "disk" { vec![blob] } else { Vec::new() };
        files.insert(name.to_owned(), ImageFile { size: bytes.len() as u64, blob, chunks });
    }
    let name = "web-server".parse().expect("name");
    let kernel_args = "console=ttyS0,115200".to_owned();
    let manifest = Manifest { format: 1, name, kind: ImageKind::System, files, kernel_args };
    let version = manifest.version();
    let path = store.join("manifests").join(format!("{version}.json"));
    std::fs::write(path, manifest.to_bytes()).expect("written");
    std::fs::write(store.join("names/web-server"), format!("{version}\n")).expect("written");
    version
}
