//! What fuzz targets share (docs/fuzzing.md): a reader of their input, what every list of faults must
//! be, and the replay of their corpora by the tests.
//!
//! A target lives beside the code that it asks, in a `fuzz` module which only tests and fuzzers
//! compile. The fuzzers' programs are in `fuzz/src/bin`, their corpora in `fuzz/corpus`, both named
//! `PACKAGE_TARGET`.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use croft_proto::checked_toml::Faults;

/// The packages that have targets: the first part of their names.
pub const PACKAGES: [&str; 3] = ["agent", "bootd", "control"];

/// Most files of one corpus, so that replaying all of them takes no time worth mentioning.
const MAX_FILES: usize = 50;

/// Longest file of a corpus, in bytes.
const MAX_BYTES: u64 = 4096;

/// A target by its name. It panics if a property does not hold, and says whether the bytes were
/// taken for something good.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// Cuts a fuzzer's bytes into values; what is missing at the end is zeros.
#[derive(Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Starts at the first byte.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether all of it has been read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    /// The next two bytes, as a big-endian number.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// The next eight bytes, as a big-endian number.
    pub fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    /// The next bytes, copied.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// The next bytes, or as many as there are.
    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// What must hold of the faults of a document: there are some, each on one line and at a place that
/// the document has, in order, and not more than a text of that length can have.
///
/// # Panics
/// It does not hold.
pub fn sound_faults(text: &str, faults: &Faults) {
    let lines = 1 + text.bytes().filter(|b| *b == b'\n').count();
    assert!(!faults.0.is_empty(), "refused without a fault");
    // A table may lack some twenty keys, and an element of two bytes can be a table.
    assert!(faults.0.len() <= 20 * (1 + text.len()), "{} faults", faults.0.len());
    assert!(faults.0.windows(2).all(|pair| pair[0].line <= pair[1].line), "out of order");
    for fault in &faults.0 {
        assert!((1..=lines).contains(&fault.line), "{fault:?} is on none of {lines} lines");
        assert!(!fault.message.is_empty(), "{fault:?} says nothing");
        assert!(!fault.to_string().contains(char::is_control), "{fault:?} is not on one line");
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

/// Names in a folder of `fuzz`, without their extension.
fn names(folder: &Path) -> BTreeSet<String> {
    let list = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    list.map(|entry| {
        let path = entry.expect("an entry of the folder").path();
        path.file_stem().expect("a name").to_str().expect("text").to_owned()
    })
    .collect()
}

/// Runs a package's targets over their corpora. Program, corpus and target each exist because the
/// other two do, and a corpus holds both what its target takes and what it refuses.
///
/// # Panics
/// One of that is not so, or a property does not hold for a file: all such files are named.
pub fn replay(package: &str, targets: &[Target]) {
    let mine = |names: BTreeSet<String>| -> BTreeSet<String> {
        names.into_iter().filter(|name| name.split('_').next() == Some(package)).collect()
    };
    let known: BTreeSet<String> = targets.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(mine(names(&folder().join("src/bin"))), known, "programs, and targets");
    assert_eq!(mine(names(&folder().join("corpus"))), known, "corpora, and targets");
    let mut failed = Vec::new();
    for (name, target) in targets {
        let mut outcomes = BTreeSet::new();
        let mut files = 0;
        for entry in std::fs::read_dir(folder().join("corpus").join(name)).expect("readable") {
            let path = entry.expect("an entry of the corpus").path();
            let bytes = std::fs::read(&path).expect("readable");
            assert!(bytes.len() as u64 <= MAX_BYTES, "{path:?} is too long for a corpus");
            files += 1;
            match catch_unwind(AssertUnwindSafe(|| target(&bytes))) {
                Ok(taken) => drop(outcomes.insert(taken)),
                Err(_) => failed.push(path),
            }
        }
        assert!(files <= MAX_FILES, "{files} files are too many for the corpus of {name}");
        assert!(outcomes.len() == 2 || !failed.is_empty(), "{name}: only {outcomes:?} is replayed");
    }
    assert!(failed.is_empty(), "these fail, as told above: {failed:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_and_corpus_is_replayed_by_a_package() {
        for part in ["src/bin", "corpus"] {
            let names = names(&folder().join(part));
            assert!(!names.is_empty(), "{part} is empty");
            for name in names {
                let package = name.split('_').next().unwrap_or_default();
                assert!(PACKAGES.contains(&package), "nobody replays {part}/{name}");
            }
        }
    }

    #[test]
    fn input_is_cut_into_values_and_ends_in_zeros() {
        let mut input = Input::new(&[1, 0, 2, 3, 4, 5]);
        assert_eq!((input.byte(), input.u16()), (1, 2));
        assert_eq!(input.bytes(2), [3, 4]);
        assert_eq!((input.u16(), input.is_empty()), (0x0500, true));
        assert_eq!((input.u64(), input.rest()), (0, &[][..]));
    }

    #[test]
    #[should_panic(expected = "programs, and targets")]
    fn a_target_without_a_program_is_missed() {
        replay("agent", &[("agent_nothing", |_| true)]);
    }
}
