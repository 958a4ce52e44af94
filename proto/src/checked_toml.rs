//! Reads TOML documents so that *every* fault is found at once, each with its line and key.
//!
//! A reader asks a [`Table`] for the keys it knows. A missing, mistyped or invalid value is noted
//! as a [`Fault`] and reading goes on; a key that nobody asked for is a fault when its table is
//! dropped. [`read`] returns the value only if there is no fault at all.
//!
//! ```
//! use croft_proto::{FarmName, checked_toml::read};
//!
//! let faults = read("nam = 'shop'\nsize = 12", |doc| {
//!     let name: Option<FarmName> = doc.required("name");
//!     let size = doc.integer("size", 1..=10);
//!     Some((name?, size?))
//! })
//! .unwrap_err();
//! assert_eq!(faults.to_string().lines().count(), 3);
//! ```

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing that is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line, counted from 1.
    pub line: usize,
    /// Dotted path of the key, for example `tier[1].scaling.target`; empty for syntax.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All that is wrong with a document, in the order of its lines; displayed as one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// Longest document that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// Reads a document with `reader`, which returns `None` where it cannot go on without a value
/// whose fault is noted already.
///
/// # Errors
/// Every fault of the document: its syntax, or what the reader noted.
pub fn read<T>(text: &str, reader: impl FnOnce(&mut Table<'_>) -> Option<T>) -> Result<T, Faults> {
    if text.len() > MAX_BYTES {
        let message = format!("the document has {} bytes; {MAX_BYTES} are allowed", text.len());
        return Err(Faults(vec![Fault { line: 1, key: String::new(), message }]));
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i).collect();
    let notes = Notes { newlines, faults: RefCell::new(Vec::new()) };
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        notes.add(at, String::new(), error.message().to_owned());
    }
    let broken = !notes.faults.borrow().is_empty();
    let value = if broken {
        None
    } else {
        let mut table = Table::new(&notes, String::new(), root.get_ref(), root.span().start);
        reader(&mut table)
    };
    let mut faults = notes.faults.into_inner();
    faults.sort_by_key(|fault| fault.line);
    match value {
        Some(value) if faults.is_empty() => Ok(value),
        _ if faults.is_empty() => {
            let message = "the document is incomplete".to_owned();
            Err(Faults(vec![Fault { line: 1, key: String::new(), message }]))
        }
        _ => Err(Faults(faults)),
    }
}

struct Notes {
    /// Offsets of the ends of lines.
    newlines: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

impl Notes {
    fn line(&self, offset: usize) -> usize {
        1 + self.newlines.partition_point(|end| *end < offset)
    }

    fn add(&self, offset: usize, key: String, message: String) {
        let line = self.line(offset);
        // What stands in the document is shown, and must not look like another line.
        let [key, message] = [key, message].map(|text| text.replace(char::is_control, " "));
        self.faults.borrow_mut().push(Fault { line, key, message });
    }
}

/// A table being read. Its unknown keys become faults when it is dropped.
pub struct Table<'a> {
    notes: &'a Notes,
    path: String,
    table: &'a DeTable<'a>,
    offset: usize,
    asked: BTreeSet<String>,
}

impl fmt::Debug for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<'a> Table<'a> {
    fn new(notes: &'a Notes, path: String, table: &'a DeTable<'a>, offset: usize) -> Self {
        Self { notes, path, table, offset, asked: BTreeSet::new() }
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn get(&mut self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.insert(key.to_owned());
        self.table.get(key)
    }

    /// The line on which the table begins, counted from 1.
    pub fn line(&self) -> usize {
        self.notes.line(self.offset)
    }

    /// Notes a fault at `key`, or at the table's own line if the key is absent.
    pub fn fault(&self, key: &str, message: impl Into<String>) {
        let at = self.table.get(key).map_or(self.offset, |value| value.span().start);
        self.notes.add(at, self.key_path(key), message.into());
    }

    fn wrong_type(&self, key: &str, want: &str, got: &DeValue<'_>) {
        self.fault(key, format!("must be {want}, not {}", got.type_str()));
    }

    /// Whether the document has the key.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Notes that a key must be there, and is not.
    fn missing(&mut self, key: &str) -> bool {
        self.asked.insert(key.to_owned());
        let missing = !self.has(key);
        if missing {
            self.fault(key, "is missing");
        }
        missing
    }

    /// A string that parses as `T`, or nothing.
    pub fn optional<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        let value = self.get(key)?.get_ref();
        let Some(text) = value.as_str() else {
            self.wrong_type(key, "a string", value);
            return None;
        };
        match text.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.fault(key, error.to_string());
                None
            }
        }
    }

    /// A string that parses as `T` and must be there.
    pub fn required<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Option<T> {
        if self.missing(key) { None } else { self.optional(key) }
    }

    /// A whole number within `range`, or nothing.
    pub fn optional_integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.get(key)?.get_ref();
        let Some(number) = value.as_integer() else {
            self.wrong_type(key, "a whole number", value);
            return None;
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(parsed) if range.contains(&parsed) => Some(parsed),
            _ => {
                let (low, high) = range.into_inner();
                self.fault(key, format!("{} is not within {low} to {high}", number.as_str()));
                None
            }
        }
    }

    /// A whole number within `range` that must be there.
    pub fn integer(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        if self.missing(key) { None } else { self.optional_integer(key, range) }
    }

    /// A number within `range`, or nothing.
    pub fn optional_float(&mut self, key: &str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.get(key)?.get_ref();
        let parsed = match value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => {
                self.wrong_type(key, "a number", value);
                return None;
            }
        };
        match parsed {
            Some(parsed) if range.contains(&parsed) => Some(parsed),
            _ => {
                self.fault(key, format!("must be within {} to {}", range.start(), range.end()));
                None
            }
        }
    }

    /// `true` or `false`, or nothing.
    pub fn optional_bool(&mut self, key: &str) -> Option<bool> {
        let value = self.get(key)?.get_ref();
        if value.as_bool().is_none() {
            self.wrong_type(key, "true or false", value);
        }
        value.as_bool()
    }

    /// The elements of an array with their paths; none if it is absent.
    fn elements(
        &mut self,
        key: &str,
        want: &str,
    ) -> impl Iterator<Item = (String, &'a Spanned<DeValue<'a>>)> + use<'a> {
        let path = self.key_path(key);
        let array = self.get(key).and_then(|value| {
            let array = value.get_ref().as_array();
            if array.is_none() {
                self.wrong_type(key, want, value.get_ref());
            }
            array
        });
        let elements = array.into_iter().flat_map(|array| array.iter()).enumerate();
        elements.map(move |(i, element)| (format!("{path}[{i}]"), element))
    }

    /// An array of strings that parse as `T`; empty if absent. Faulty elements are left out.
    pub fn list<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Vec<T> {
        let mut list = Vec::new();
        for (path, element) in self.elements(key, "an array of strings") {
            let parsed = match element.get_ref().as_str() {
                Some(text) => text.parse().map_err(|e: T::Err| e.to_string()),
                None => Err(format!("must be a string, not {}", element.get_ref().type_str())),
            };
            match parsed {
                Ok(parsed) => list.push(parsed),
                Err(message) => self.notes.add(element.span().start, path, message),
            }
        }
        list
    }

    /// An array whose elements are strings that parse as `T`, or tables of which `reader` makes
    /// one; empty if absent. Faulty elements are left out.
    pub fn list_or_tables<T: FromStr<Err: fmt::Display>>(
        &mut self,
        key: &str,
        mut reader: impl FnMut(&mut Table<'a>) -> Option<T>,
    ) -> Vec<T> {
        let mut list = Vec::new();
        for (path, element) in self.elements(key, "an array of strings and tables") {
            let value = element.get_ref();
            let start = element.span().start;
            if let Some(table) = value.as_table() {
                list.extend(reader(&mut Table::new(self.notes, path, table, start)));
                continue;
            }
            let parsed = match value.as_str() {
                Some(text) => text.parse().map_err(|e: T::Err| e.to_string()),
                None => Err(format!("must be a string or a table, not {}", value.type_str())),
            };
            match parsed {
                Ok(parsed) => list.push(parsed),
                Err(message) => self.notes.add(start, path, message),
            }
        }
        list
    }

    /// A table below this one, or nothing.
    pub fn optional_table(&mut self, key: &str) -> Option<Table<'a>> {
        let value = self.get(key)?;
        match value.get_ref().as_table() {
            Some(table) => {
                Some(Table::new(self.notes, self.key_path(key), table, value.span().start))
            }
            None => {
                self.wrong_type(key, "a table", value.get_ref());
                None
            }
        }
    }

    /// A table below this one that must be there.
    pub fn table(&mut self, key: &str) -> Option<Table<'a>> {
        if self.missing(key) { None } else { self.optional_table(key) }
    }

    /// An array of tables (`[[key]]`); empty if absent.
    pub fn tables(&mut self, key: &str) -> Vec<Table<'a>> {
        let mut tables = Vec::new();
        for (path, element) in self.elements(key, "an array of tables") {
            match element.get_ref().as_table() {
                Some(table) => {
                    tables.push(Table::new(self.notes, path, table, element.span().start));
                }
                None => {
                    let message = format!("must be a table, not {}", element.get_ref().type_str());
                    self.notes.add(element.span().start, path, message);
                }
            }
        }
        tables
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        for (key, _) in self.table.iter() {
            if !self.asked.contains(key.get_ref().as_ref()) {
                let known = self.asked.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                let message = format!("is not a key here; these are: {known}");
                let path = self.key_path(key.get_ref());
                self.notes.add(key.span().start, path, message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FarmName, TierName};

    fn farm(doc: &mut Table<'_>) -> Option<(FarmName, Vec<(TierName, u64)>)> {
        let mut head = doc.table("farm")?;
        let name = head.required("name");
        let mut tiers = Vec::new();
        for mut tier in doc.tables("tier") {
            let name = tier.required("name");
            let min = tier.integer("min", 1..=100);
            tier.optional_float("target", 0.1..=1.0);
            if let (Some(name), Some(min)) = (name, min) {
                tiers.push((name, min));
            }
        }
        Some((name?, tiers))
    }

    #[test]
    fn a_fault_is_one_line_whatever_the_document_holds() {
        let text = "\"a\\nline 9: b\" = 1\n[farm]\nname = \"x\\ny\"";
        let faults = read(text, farm).expect_err("faulty");
        assert!(faults.to_string().lines().count() == faults.0.len(), "{faults}");
        assert!(faults.0.iter().any(|fault| fault.key == "a line 9: b"), "{faults}");
    }

    #[test]
    fn a_good_document_reads() {
        let text = "[farm]\nname = 'shop'\n[[tier]]\nname = 'web'\nmin = 2\ntarget = 1\n";
        let (name, tiers) = read(text, farm).expect("valid");
        assert_eq!(name.as_str(), "shop");
        assert_eq!(tiers.len(), 1);
    }

    #[test]
    fn every_fault_is_reported_with_line_and_key() {
        let text = "[farm]\nname = 'Shop'\ncolour = 'red'\n\n[[tier]]\nmin = 0\ntarget = 'x'\n";
        let faults = read(text, farm).expect_err("faulty");
        let at: Vec<_> = faults.0.iter().map(|f| (f.line, f.key.as_str())).collect();
        assert_eq!(
            at,
            [
                (2, "farm.name"),
                (3, "farm.colour"),
                (5, "tier[0].name"),
                (6, "tier[0].min"),
                (7, "tier[0].target"),
            ]
        );
    }

    #[test]
    fn syntax_faults_have_lines() {
        let faults = read("[farm]\nname = \n", farm).expect_err("faulty");
        assert_eq!(faults.0[0].line, 2);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = read(&text, farm);
        }
    }
}
