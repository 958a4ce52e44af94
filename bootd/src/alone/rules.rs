//! Assignment rules, compiled to an index. Pure.
//!
//! A rule asks for some facts of a sender and gives it a role. The most specific rule that matches
//! wins. Specific means: what names one machine before what names many, in the order in which a
//! request is trusted. Two rules that ask for the same facts are equally specific, so the order of
//! all rules follows from *which* facts they ask for, their shape, and two that could match the same
//! sender are a fault of the file.
//!
//! The index has one hash table per shape, looked up from the most specific shape down: a
//! decision costs as many look-ups as there are shapes in the file, however many rules and machines.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use croft_proto::{CircuitId, ClassName, MacAddr, RoleName, SegmentName};
use uuid::Uuid;

use super::plan::{Label, Machine};

/// The first bytes of a MAC address, or all six.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct MacPrefix {
    bits: u64,
    /// Bytes that count, 1 to 6.
    length: u8,
}

impl MacPrefix {
    /// As many bytes of `mac`.
    fn of(mac: MacAddr, length: u8) -> Self {
        let [a, b, c, d, e, f] = mac.octets();
        let all = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let shift = 8 * (6 - u32::from(length));
        Self { bits: all >> shift << shift, length }
    }
}

impl FromStr for MacPrefix {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let fault = || {
            format!(
                "{s:.40?} is no MAC address or prefix: write 52:54:00:0a:00:01, or 52:54:00 for all that begin so"
            )
        };
        let mut octets = [0; 6];
        let mut length = 0;
        for part in s.split(':') {
            let octet = octets.get_mut(length).ok_or_else(fault)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(fault());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| fault())?;
            length += 1;
        }
        if octets[0] & 1 != 0 || octets == [0; 6] {
            return Err(fault());
        }
        let [a, b, c, d, e, f] = octets;
        let bits = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        Ok(Self { bits, length: length as u8 })
    }
}

impl fmt::Display for MacPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = &self.bits.to_be_bytes()[2..];
        for (i, byte) in bytes.iter().take(self.length.into()).enumerate() {
            write!(f, "{}{byte:02x}", if i > 0 { ":" } else { "" })?;
        }
        Ok(())
    }
}

/// A processor and firmware family: option 93 with the numbers of one family taken together, because
/// firmware and the iPXE that it starts send different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Family(u16);

/// Names of families, and the numbers of the IANA registry in each; the first stands for all.
const FAMILIES: [(&str, &[u16]); 6] = [
    ("bios", &[0, 20]),
    ("uefi", &[7, 9, 16, 17]),
    ("uefi-ia32", &[6, 15]),
    ("uefi-arm32", &[10, 18]),
    ("uefi-arm64", &[11, 19]),
    ("uefi-riscv64", &[27, 28]),
];

impl Family {
    /// The family of an architecture number.
    pub(crate) fn of(number: u16) -> Self {
        let family = FAMILIES.iter().find(|(_, numbers)| numbers.contains(&number));
        Self(family.map_or(number, |(_, numbers)| numbers[0]))
    }

    /// A number of option 93, or the first of a family by its name.
    ///
    /// # Errors
    /// It is neither.
    pub(crate) fn number(text: &str) -> Result<u16, String> {
        if let Some((_, numbers)) = FAMILIES.iter().find(|(name, _)| *name == text) {
            return Ok(numbers[0]);
        }
        text.parse().map_err(|_| {
            let names: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
            format!("must be a number of option 93 or one of: {}", names.join(", "))
        })
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::number(s).map(Self::of)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FAMILIES.iter().find(|(_, numbers)| numbers[0] == self.0) {
            Some((name, _)) => f.pad(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// The facts that a rule asks for; what is absent is not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Asks {
    pub circuit: Option<CircuitId>,
    pub mac: Option<MacPrefix>,
    pub uuid: Option<Uuid>,
    pub label: Option<Label>,
    pub class: Option<ClassName>,
    pub arch: Option<Family>,
    pub segment: Option<SegmentName>,
}

impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.circuit.as_ref().map(|v| format!("circuit_id = {v}")));
        parts.extend(self.mac.map(|v| format!("mac = {v}")));
        parts.extend(self.uuid.map(|v| format!("uuid = {v}")));
        parts.extend(self.label.as_ref().map(|v| format!("label = {}", v.0)));
        parts.extend(self.class.as_ref().map(|v| format!("class = {v}")));
        parts.extend(self.arch.map(|v| format!("arch = {v}")));
        parts.extend(self.segment.as_ref().map(|v| format!("segment = {v}")));
        if parts.is_empty() {
            return f.write_str("every machine");
        }
        f.write_str(&parts.join(", "))
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Where it stands in the file.
    pub line: usize,
    pub asks: Asks,
    pub role: RoleName,
}

/// What a request shows, and what the file says about the machine that sent it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender<'a> {
    /// The name of the subnet.
    pub link: &'a SegmentName,
    pub mac: MacAddr,
    pub circuit: Option<&'a CircuitId>,
    /// Option 97.
    pub uuid: Option<[u8; 16]>,
    pub arch: Option<Family>,
    pub machine: Option<&'a Machine>,
}

/// Which facts a rule asks for. The derived order is that of specificity: earlier fields count more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Shape {
    circuit: bool,
    mac: bool,
    uuid: bool,
    /// Bytes of the MAC address, if not all.
    prefix: u8,
    label: bool,
    class: bool,
    arch: bool,
    segment: bool,
}

impl Shape {
    fn of(asks: &Asks) -> Self {
        Self {
            circuit: asks.circuit.is_some(),
            mac: asks.mac.is_some_and(|mac| mac.length == 6),
            uuid: asks.uuid.is_some(),
            prefix: asks.mac.map_or(0, |mac| if mac.length < 6 { mac.length } else { 0 }),
            label: asks.label.is_some(),
            class: asks.class.is_some(),
            arch: asks.arch.is_some(),
            segment: asks.segment.is_some(),
        }
    }
}

/// The values asked for, names as numbers; 0 where nothing is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Key {
    uuid: u128,
    mac: u64,
    circuit: u32,
    label: u32,
    class: u32,
    segment: u32,
    /// The family plus one.
    arch: u32,
}

/// Numbers for names, from 1 on.
#[derive(Debug, Clone, PartialEq)]
struct Numbers<T: std::hash::Hash + Eq>(HashMap<T, u32>);

impl<T: std::hash::Hash + Eq + Clone> Numbers<T> {
    fn give(&mut self, value: &T) -> u32 {
        let next = self.0.len() as u32 + 1;
        *self.0.entry(value.clone()).or_insert(next)
    }

    /// A number that no rule has, if none asks for the value.
    fn get(&self, value: &T) -> u32 {
        self.0.get(value).copied().unwrap_or(u32::MAX)
    }
}

impl<T: std::hash::Hash + Eq> Default for Numbers<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// Two rules of which none is more specific.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tie {
    pub first: usize,
    pub second: usize,
    /// A machine that both match, if not every sender that one matches is matched by the other.
    pub machine: Option<String>,
}

/// The rules and their index.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rules {
    pub list: Vec<Rule>,
    /// The most specific shape first.
    tables: Vec<(Shape, HashMap<Key, usize>)>,
    circuits: Numbers<CircuitId>,
    labels: Numbers<Label>,
    classes: Numbers<ClassName>,
    segments: Numbers<SegmentName>,
}

impl Rules {
    /// Compiles rules.
    ///
    /// # Errors
    /// Every pair that could match the same sender and is equally specific.
    pub(crate) fn compile(list: Vec<Rule>, machines: &[Machine]) -> Result<Self, Vec<Tie>> {
        let mut rules = Self::default();
        let mut tables: BTreeMap<Shape, HashMap<Key, usize>> = BTreeMap::new();
        let mut ties = Vec::new();
        for (i, rule) in list.iter().enumerate() {
            let key = rules.key(&rule.asks);
            let table = tables.entry(Shape::of(&rule.asks)).or_default();
            if let Some(first) = table.insert(key, i) {
                ties.push(Tie { first, second: i, machine: None });
            }
        }
        for (shape, table) in tables.iter().filter(|(shape, _)| shape.label) {
            label_ties(*shape, table, &list, machines, &mut ties);
        }
        if !ties.is_empty() {
            return Err(ties);
        }
        rules.tables = tables.into_iter().rev().collect();
        rules.list = list;
        Ok(rules)
    }

    fn key(&mut self, asks: &Asks) -> Key {
        Key {
            uuid: asks.uuid.map_or(0, |uuid| uuid.as_u128()),
            mac: asks.mac.map_or(0, |mac| mac.bits),
            circuit: asks.circuit.as_ref().map_or(0, |v| self.circuits.give(v)),
            label: asks.label.as_ref().map_or(0, |v| self.labels.give(v)),
            class: asks.class.as_ref().map_or(0, |v| self.classes.give(v)),
            segment: asks.segment.as_ref().map_or(0, |v| self.segments.give(v)),
            arch: asks.arch.map_or(0, |v| u32::from(v.0) + 1),
        }
    }

    /// The rule that decides about this sender.
    pub(crate) fn find(&self, sender: &Sender<'_>) -> Option<&Rule> {
        let circuit = sender.circuit.map(|v| self.circuits.get(v));
        let class = sender.machine.and_then(|m| m.class.as_ref()).map(|v| self.classes.get(v));
        let segment = self.segments.get(sender.link);
        let labels: Vec<u32> = sender
            .machine
            .map(|m| m.labels.iter().map(|v| self.labels.get(v)).collect())
            .unwrap_or_default();
        // Both byte orders; the same number twice does no harm.
        let uuids = sender
            .uuid
            .map(|raw| [Uuid::from_bytes(raw), Uuid::from_bytes_le(raw)].map(|u| u.as_u128()));
        for (shape, table) in &self.tables {
            let length = if shape.mac { 6 } else { shape.prefix };
            // A fact that the sender does not show is like none that a rule could ask for.
            let wanted = |asked: bool, fact: Option<u32>| if asked { fact } else { Some(0) };
            let (Some(circuit), Some(class), Some(arch)) = (
                wanted(shape.circuit, circuit),
                wanted(shape.class, class),
                wanted(shape.arch, sender.arch.map(|family| u32::from(family.0) + 1)),
            ) else {
                continue;
            };
            let base = Key {
                mac: if length > 0 { MacPrefix::of(sender.mac, length).bits } else { 0 },
                circuit,
                class,
                segment: if shape.segment { segment } else { 0 },
                arch,
                ..Key::default()
            };
            let uuids: &[u128] = match &uuids {
                _ if !shape.uuid => &[0],
                Some(uuids) => uuids,
                None => &[],
            };
            let labels: &[u32] = if shape.label { &labels } else { &[0] };
            for uuid in uuids {
                for label in labels {
                    if let Some(i) = table.get(&Key { uuid: *uuid, label: *label, ..base }) {
                        return Some(&self.list[*i]);
                    }
                }
            }
        }
        None
    }

    /// Every rule that matches, the one that decides first. Looks at all rules.
    pub(crate) fn matching(&self, sender: &Sender<'_>) -> Vec<&Rule> {
        let mut matching: Vec<_> = self.list.iter().filter(|r| matches(&r.asks, sender)).collect();
        matching.sort_by_key(|rule| std::cmp::Reverse(Shape::of(&rule.asks)));
        matching
    }
}

/// Whether a rule's facts are the sender's.
fn matches(asks: &Asks, sender: &Sender<'_>) -> bool {
    let machine = sender.machine;
    asks.circuit.as_ref().is_none_or(|v| sender.circuit == Some(v))
        && asks.mac.is_none_or(|v| MacPrefix::of(sender.mac, v.length) == v)
        && asks.uuid.is_none_or(|v| sender.uuid.is_some_and(|raw| crate::boot::same_uuid(raw, v)))
        && asks.label.as_ref().is_none_or(|v| machine.is_some_and(|m| m.labels.contains(v)))
        && asks.class.as_ref().is_none_or(|v| machine.is_some_and(|m| m.class.as_ref() == Some(v)))
        && asks.arch.is_none_or(|v| sender.arch == Some(v))
        && asks.segment.as_ref().is_none_or(|v| sender.link == v)
}

/// Rules of one shape that differ in their label alone tie for a machine with both labels.
fn label_ties(
    shape: Shape,
    table: &HashMap<Key, usize>,
    list: &[Rule],
    machines: &[Machine],
    ties: &mut Vec<Tie>,
) {
    debug_assert!(shape.label);
    let mut groups: HashMap<Key, Vec<usize>> = HashMap::new();
    for (key, rule) in table {
        groups.entry(Key { label: 0, ..*key }).or_default().push(*rule);
    }
    groups.retain(|_, rules| rules.len() > 1);
    for machine in machines.iter().filter(|machine| machine.labels.len() > 1) {
        for rules in groups.values() {
            let fits = |rule: &&usize| {
                let asks = &list[**rule].asks;
                asks.label.as_ref().is_some_and(|label| machine.labels.contains(label))
                    && (asks.class.is_none() || asks.class == machine.class)
                    && asks.uuid.is_none_or(|uuid| machine.uuid.is_none_or(|own| own == uuid))
            };
            let mut both: Vec<usize> = rules.iter().filter(fits).copied().collect();
            both.sort_unstable();
            if let [first, second, ..] = both[..] {
                ties.push(Tie { first, second, machine: Some(machine.name.to_string()) });
            }
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
