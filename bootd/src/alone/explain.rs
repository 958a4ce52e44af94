//! What a machine would get, and which line of the file says so. Pure.

use std::fmt::{self, Write as _};

use croft_proto::{CircuitId, MacAddr, SegmentName};
use uuid::Uuid;

use super::identity::{Who, recognise};
use super::plan::{Link, Plan};
use super::rules::{Family, Sender};
use crate::dhcp::packet::Architecture;
use crate::dhcp::rom::Rom;

/// A machine that might ask.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub mac: MacAddr,
    pub uuid: Option<Uuid>,
    /// The number of option 93: those of a family are told different boot files.
    pub arch: Option<u16>,
    pub segment: Option<SegmentName>,
    pub circuit: Option<CircuitId>,
}

/// A question that has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given}; the segments are: {known}")]
pub(crate) struct NoSuchSegment {
    given: String,
    known: String,
}

/// Answers in sentences.
///
/// # Errors
/// The segment does not exist, or must be said because there are several.
pub(crate) fn explain(plan: &Plan, question: &Question) -> Result<String, NoSuchSegment> {
    let link = link(plan, question.segment.as_ref())?;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, plan, link, question);
    Ok(text)
}

fn link<'p>(plan: &'p Plan, named: Option<&SegmentName>) -> Result<&'p Link, NoSuchSegment> {
    let known = || plan.links.iter().map(|l| l.name.to_string()).collect::<Vec<_>>().join(", ");
    match (named, &plan.links[..]) {
        (None, [only]) => Ok(only),
        (None, _) => Err(NoSuchSegment { given: "say --segment".to_owned(), known: known() }),
        (Some(name), links) => links.iter().find(|link| link.name == *name).ok_or_else(|| {
            NoSuchSegment { given: format!("there is no segment {name}"), known: known() }
        }),
    }
}

fn write(text: &mut String, plan: &Plan, link: &Link, question: &Question) -> fmt::Result {
    let raw = question.uuid.map(Uuid::into_bytes);
    let circuit = question.circuit.as_ref();
    let (node, machine) = match recognise(&plan.machines, question.mac, raw, circuit) {
        Who::Machine(node, machine) => (node, machine),
        Who::OtherNic(node) => {
            return writeln!(
                text,
                "node     {node}: this NIC does not boot; it gets an address at most"
            );
        }
        Who::Refused(node, why) => {
            return writeln!(text, "node     not {node}: {why}; it gets no answer and is reported");
        }
    };
    let known = if machine.is_some() { "named in the file" } else { "not named in the file" };
    writeln!(text, "node     {node}, {known}")?;
    writeln!(text, "segment  {} ({})", link.name, link.subnet)?;
    let sender = Sender {
        link: &link.name,
        mac: question.mac,
        circuit,
        uuid: raw,
        arch: question.arch.map(Family::of),
        machine,
    };
    let proxy = plan.segments.get(&link.segment).is_some_and(|segment| segment.leg.proxy);
    let fixed = machine.and_then(|m| m.address).filter(|address| link.subnet.contains(address));
    let rule = plan.rules.find(&sender);
    let stranger = machine.is_none() && rule.is_none() && !link.strangers;
    match (proxy, fixed) {
        (false, _) if stranger => writeln!(
            text,
            "address  none: only machines that a rule or a [[node]] names get one here \
             (strangers = false)"
        )?,
        (true, _) => writeln!(text, "address  from the other DHCP server of the segment")?,
        (false, Some(address)) => writeln!(text, "address  {address}, always")?,
        (false, None) if link.pools.is_empty() => {
            writeln!(text, "address  none: the segment has no pools, and the node no address")?;
        }
        (false, None) => {
            let pools = link.pools.iter().map(|p| format!("{}-{}", p.first, p.last));
            writeln!(text, "address  of {}", pools.collect::<Vec<_>>().join(", "))?;
        }
    }
    let Some(rule) = rule else {
        let boots = if proxy { "gets no answer" } else { "boots nothing from here" };
        writeln!(text, "rule     none matches: it {boots}")?;
        if question.arch.is_none() {
            writeln!(
                text,
                "         (--arch was not given, so rules that ask for it do not match)"
            )?;
        }
        return Ok(());
    };
    writeln!(text, "rule     line {}: {} -> {}", rule.line, rule.asks, rule.role)?;
    for other in plan.rules.matching(&sender).iter().skip(1) {
        let line = other.line;
        writeln!(
            text,
            "         before line {line}, less specific: {} -> {}",
            other.asks, other.role
        )?;
    }
    let Some(blueprint) = plan.blueprints.get(&rule.role) else { return Ok(()) };
    write!(text, "boots    {}", blueprint.method)?;
    if let Some(image) = &blueprint.image {
        write!(text, ", image {image}")?;
    }
    if let Some(root) = blueprint.root {
        write!(text, ", {} root", if root.persistent { "persistent" } else { "ephemeral" })?;
    }
    writeln!(text)?;
    if let Some(arch) = question.arch {
        let rom = Rom::of(Architecture::of(arch));
        match rom {
            Some(rom) => writeln!(text, "firmware {} ({})", rom.file(link.server), rom.vendor)?,
            None => writeln!(
                text,
                "firmware no boot program for {}: it gets no answer",
                Family::of(arch)
            )?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alone::plan::tests::{FILE, plan};

    fn ask(mac: &str, segment: Option<&str>, arch: Option<&str>) -> Result<String, NoSuchSegment> {
        let question = Question {
            mac: mac.parse().expect("MAC"),
            uuid: None,
            arch: arch.map(|arch| Family::number(arch).expect("arch")),
            segment: segment.map(|name| name.parse().expect("name")),
            circuit: None,
        };
        explain(&plan(), &question)
    }

    #[test]
    fn a_number_of_option_93_is_told_what_that_number_boots() {
        let firmware = |arch| {
            let text = ask("52:54:00:00:02:00", Some("lan"), Some(arch)).expect("an answer");
            let line = text.lines().find(|line| line.starts_with("firmware")).map(str::to_owned);
            line.expect("a line about its firmware")
        };
        assert_eq!(firmware("uefi"), "firmware snponly.efi (PXEClient)");
        assert_eq!(firmware("9"), firmware("uefi"));
        assert_eq!(firmware("16"), "firmware http://192.168.1.2/ipxe/snponly.efi (HTTPClient)");
        assert!(firmware("17").contains("no boot program"), "{}", firmware("17"));
    }

    #[test]
    fn strangers_are_told_that_they_get_no_address() {
        let text = FILE.replace(
            "role = \"skip\"\n\n[[rule]]",
            "role = \"skip\"\nclass = \"small\"\nlabel = \"floor=1\"\n\n[[rule]]",
        );
        let text = text.replace("lease_s = 3600", "lease_s = 3600\nstrangers = false");
        let crate::config::Source::Alone(plan) =
            crate::config::Config::parse(&text).expect("a good file").source
        else {
            panic!("it has no [edge]")
        };
        let ask = |mac: &str| {
            let mac = mac.parse().expect("MAC");
            let segment = Some("lan".parse().expect("name"));
            let question = Question { mac, uuid: None, arch: None, segment, circuit: None };
            explain(&plan, &question).expect("an answer")
        };
        assert!(ask("00:11:22:33:44:55").contains("address  none: only"));
        assert!(ask("52:54:00:00:09:09").contains("address  of 192.168.1.100"), "a rule names it");
    }

    #[test]
    fn the_deciding_rule_and_those_it_beats_are_named_with_their_lines() {
        let text = ask("52:54:00:00:02:00", Some("lan"), Some("bios")).expect("an answer");
        let wanted = "\
node     kitchen, named in the file
segment  lan (192.168.1.0/24)
address  192.168.1.20, always
rule     line 71: mac = 52:54:00, segment = lan -> db
         before line 67, less specific: class = small -> db
         before line 60, less specific: arch = bios -> web
         before line 64, less specific: every machine -> skip
boots    san, image database, persistent root
firmware undionly.kpxe (PXEClient)
";
        assert_eq!(text, wanted);
        let text = ask("52:54:00:00:02:01", Some("lan"), None).expect("an answer");
        assert!(text.contains("this NIC does not boot"), "{text}");
        let text = ask("00:11:22:33:44:55", Some("attic"), Some("uefi")).expect("an answer");
        assert!(text.contains("m-001122334455, not named in the file"), "{text}");
        assert!(text.contains("address  of 10.9.0.10-10.9.0.20"), "{text}");
        assert!(text.contains("line 64: every machine -> skip"), "{text}");
        let text = ask("00:11:22:33:44:55", Some("guests"), None).expect("an answer");
        assert!(text.contains("from the other DHCP server"), "{text}");
        let error = ask("00:11:22:33:44:55", None, None).expect_err("ambiguous").to_string();
        assert_eq!(error, "say --segment; the segments are: lan, attic, guests");
        assert!(ask("00:11:22:33:44:55", Some("moon"), None).is_err());
    }
}
