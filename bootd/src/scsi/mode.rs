//! MODE SENSE and MODE SELECT (SPC-4 sections 6.9 to 6.12 and 7.5, SBC-3 section 6.5).
//!
//! Three pages: caching, of which WCE can be changed; control, of which D_SENSE and SWP can be;
//! informational exceptions, which is fixed. The pages belong to the unit, all sessions see the
//! same. They are not saved: a LOGICAL UNIT RESET and a restart of bootd bring the defaults back.

use std::sync::atomic::{AtomicU8, Ordering};

use super::sense::Sense;

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const EXCEPTIONS: u8 = 0x1c;
const ALL: u8 = 0x3f;

/// Answers are written through: WCE is 0.
const WRITE_THROUGH: u8 = 1;
/// Sense data has the descriptor format.
const DESCRIPTORS: u8 = 2;
/// Software write protection.
const PROTECTED: u8 = 4;

/// What can be changed of the mode pages.
#[derive(Debug, Default)]
pub(crate) struct Modes(AtomicU8);

impl Modes {
    fn has(&self, flag: u8) -> bool {
        self.0.load(Ordering::Acquire) & flag != 0
    }

    /// Whether writes are on disk before they are answered (WCE=0).
    pub fn write_through(&self) -> bool {
        self.has(WRITE_THROUGH)
    }

    /// Whether sense data has the descriptor format (D_SENSE=1).
    pub fn descriptor_sense(&self) -> bool {
        self.has(DESCRIPTORS)
    }

    /// Whether writes are refused (SWP=1).
    pub fn protected(&self) -> bool {
        self.has(PROTECTED)
    }

    /// Whether nothing was changed.
    pub fn is_default(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// Brings the defaults back.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Takes a MODE SELECT parameter list, whole or not at all. Returns whether anything changed.
    ///
    /// # Errors
    /// A wrong length, or a change of what cannot be changed.
    pub fn select(&self, ten: bool, fixed: bool, blocks: u64, list: &[u8]) -> Result<bool, Sense> {
        let now = self.0.load(Ordering::Acquire);
        let next = parse_list(now, ten, fixed, blocks, list)?;
        // Two that come at once: the later one stands, as with any two commands.
        Ok(self.0.swap(next, Ordering::AcqRel) != next)
    }
}

/// What MODE SENSE is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    pub ten: bool,
    pub no_blocks: bool,
    pub control: u8,
    pub page: u8,
    pub subpage: u8,
}

/// What a unit is, for MODE SENSE.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub blocks: u64,
    /// The session may not write.
    pub read_only: bool,
}

/// A page's bytes with these flags.
fn values(page: u8, flags: u8) -> Option<Vec<u8>> {
    let mut body = match page {
        CACHING => vec![0; 20],
        CONTROL | EXCEPTIONS => vec![0; 12],
        _ => return None,
    };
    body[0] = page;
    body[1] = (body.len() - 2) as u8;
    let bit = |flag: u8, bit: u8| if flags & flag != 0 { bit } else { 0 };
    if page == CACHING {
        // Writes are cached until SYNCHRONIZE CACHE.
        body[2] = 0x04 & !bit(WRITE_THROUGH, 0x04);
    }
    if page == CONTROL {
        body[2] = bit(DESCRIPTORS, 0x04);
        body[3] = 0x10; // commands may be reordered
        body[4] = bit(PROTECTED, 0x08);
        body[5] = 0x40; // commands that another nexus aborts are answered (TAS)
        // A busy timeout without end.
        body[8..10].copy_from_slice(&[0xff, 0xff]);
    }
    Some(body)
}

/// The bits of a page that can be changed.
fn mask(page: u8, fixed: bool) -> Option<Vec<u8>> {
    let mut body = values(page, 0)?;
    body[2..].fill(0);
    match page {
        _ if fixed => {}
        CACHING => body[2] = 0x04,
        CONTROL => {
            body[2] = 0x04;
            body[4] = 0x08;
        }
        _ => {}
    }
    Some(body)
}

/// The flags that a page's bytes stand for, the others as they were.
fn flags_of(page: u8, body: &[u8], now: u8) -> u8 {
    let set = |flags: u8, flag: u8, on: bool| if on { flags | flag } else { flags & !flag };
    match page {
        CACHING => set(now, WRITE_THROUGH, body[2] & 0x04 == 0),
        CONTROL => {
            let flags = set(now, DESCRIPTORS, body[2] & 0x04 != 0);
            set(flags, PROTECTED, body[4] & 0x08 != 0)
        }
        _ => now,
    }
}

/// The answer to MODE SENSE, not yet cut to the allocation length.
pub(crate) fn sense(modes: &Modes, question: Question, about: About) -> Result<Vec<u8>, Sense> {
    let Question { ten, no_blocks, control, page, subpage } = question;
    if control == 3 {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    if subpage != 0 && !(page == ALL && subpage == 0xff) {
        return Err(Sense::INVALID_FIELD_IN_CDB.at(3, 7));
    }
    let flags = modes.0.load(Ordering::Acquire);
    let pages = if page == ALL { &[CACHING, CONTROL, EXCEPTIONS][..] } else { &[page] };
    let mut body = Vec::new();
    for page in pages {
        let values = match control {
            1 => mask(*page, about.read_only),
            2 => values(*page, 0),
            _ => values(*page, flags),
        };
        body.extend(values.ok_or(Sense::INVALID_FIELD_IN_CDB.at(2, 5))?);
    }
    let mut descriptor = Vec::new();
    if !no_blocks {
        descriptor.extend(u32::try_from(about.blocks).unwrap_or(u32::MAX).to_be_bytes());
        descriptor.extend(512_u32.to_be_bytes());
    }
    // Write protection, and DPO and FUA are understood.
    let protected = about.read_only || flags & PROTECTED != 0;
    let device = if protected { 0x80 } else { 0 } | 0x10;
    let header = if ten {
        let length = (6 + descriptor.len() + body.len()) as u16;
        let [high, low] = length.to_be_bytes();
        vec![high, low, 0, device, 0, 0, 0, descriptor.len() as u8]
    } else {
        vec![(3 + descriptor.len() + body.len()) as u8, 0, device, descriptor.len() as u8]
    };
    Ok([header, descriptor, body].concat())
}

/// The flags after a MODE SELECT parameter list; `fixed` if the session may change nothing.
fn parse_list(now: u8, ten: bool, fixed: bool, blocks: u64, list: &[u8]) -> Result<u8, Sense> {
    let header = if ten { 8 } else { 4 };
    if list.is_empty() {
        return Ok(now);
    }
    let head = list.get(..header).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let descriptors = if ten {
        usize::from(u16::from_be_bytes([head[6], head[7]]))
    } else {
        usize::from(head[3])
    };
    // The medium type, and long block descriptors.
    if head[if ten { 2 } else { 1 }] != 0 || (ten && head[4] & 1 != 0) {
        return Err(Sense::INVALID_PARAMETER);
    }
    let rest = &list[header..];
    let (descriptor, mut rest) =
        rest.split_at_checked(descriptors).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    match descriptor.len() {
        0 => {}
        8 => check_blocks(descriptor, blocks)?,
        _ => return Err(Sense::INVALID_PARAMETER),
    }
    let mut next = now;
    while !rest.is_empty() {
        let page = rest[0] & 0x3f;
        let present = values(page, next).ok_or(Sense::INVALID_PARAMETER)?;
        let changeable = mask(page, fixed).ok_or(Sense::INVALID_PARAMETER)?;
        // Subpages, and a length that is not the page's.
        if rest[0] & 0x40 != 0 || rest.get(1).is_some_and(|length| *length != present[1]) {
            return Err(Sense::INVALID_PARAMETER);
        }
        let (body, after) =
            rest.split_at_checked(present.len()).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let bytes = body.iter().zip(&present).zip(&changeable).skip(2);
        if bytes.into_iter().any(|((new, old), mask)| (new ^ old) & !mask != 0) {
            return Err(Sense::INVALID_PARAMETER);
        }
        next = flags_of(page, body, next);
        rest = after;
    }
    Ok(next)
}

/// A block descriptor may repeat what is so.
fn check_blocks(descriptor: &[u8], blocks: u64) -> Result<(), Sense> {
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    let count = number(&descriptor[0..4]);
    let fits = count == 0 || count == blocks.min(u64::from(u32::MAX));
    if fits && number(&descriptor[5..8]) == 512 { Ok(()) } else { Err(Sense::INVALID_PARAMETER) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ASK: Question =
        Question { ten: false, no_blocks: true, control: 0, page: ALL, subpage: 0 };
    const PLAIN: About = About { blocks: 8, read_only: false };

    fn page(modes: &Modes, page: u8, control: u8) -> Vec<u8> {
        sense(modes, Question { page, control, ..ASK }, PLAIN).expect("answered")[4..].to_vec()
    }

    fn change(modes: &Modes, page: &[u8], fixed: bool) -> Result<bool, Sense> {
        modes.select(false, fixed, 8, &[&[0; 4], page].concat())
    }

    #[test]
    fn lengths_agree_in_both_forms() {
        let modes = Modes::default();
        let ask = Question { no_blocks: false, ..ASK };
        let six = sense(&modes, ask, PLAIN).expect("answered");
        assert_eq!(usize::from(six[0]) + 1, six.len());
        let about = About { read_only: true, ..PLAIN };
        let ten = sense(&modes, Question { ten: true, ..ask }, about).expect("answered");
        assert_eq!(usize::from(u16::from_be_bytes([ten[0], ten[1]])) + 2, ten.len());
        assert_eq!(ten[3] & 0x80, 0x80, "write-protected");
        assert_eq!(six[2] & 0x80, 0);
        // What was sensed can be selected, block descriptor and all.
        let mut list = six.clone();
        list[0] = 0;
        assert_eq!(modes.select(false, false, 8, &list), Ok(false));
        assert_eq!(modes.select(false, false, 9, &list), Err(Sense::INVALID_PARAMETER));
    }

    #[test]
    fn the_changeable_bits_and_no_others_can_be_changed() {
        let modes = Modes::default();
        for number in [CACHING, CONTROL, EXCEPTIONS] {
            let mask = page(&modes, number, 1);
            for bit in 16..mask.len() * 8 {
                modes.reset();
                let mut body = page(&modes, number, 0);
                body[bit / 8] ^= 1 << (bit % 8);
                let changeable = mask[bit / 8] & 1 << (bit % 8) != 0;
                let expected = if changeable { Ok(true) } else { Err(Sense::INVALID_PARAMETER) };
                assert_eq!(change(&modes, &body, true).ok(), None, "page {number} bit {bit}");
                assert_eq!(change(&modes, &body, false), expected, "page {number} bit {bit}");
                if changeable {
                    assert_eq!(page(&modes, number, 0), body);
                    assert_ne!(page(&modes, number, 2), body, "the default stays");
                }
            }
        }
    }

    #[test]
    fn each_bit_is_the_mode_it_stands_for() {
        let modes = Modes::default();
        assert!(!modes.write_through() && !modes.descriptor_sense() && !modes.protected());
        let (mut caching, mut control) = (page(&modes, CACHING, 0), page(&modes, CONTROL, 0));
        caching[2] &= !0x04;
        control[2] |= 0x04;
        control[4] |= 0x08;
        assert_eq!(change(&modes, &[caching, control].concat(), false), Ok(true));
        assert!(modes.write_through() && modes.descriptor_sense() && modes.protected());
        modes.reset();
        assert!(modes.is_default());
    }

    #[test]
    fn a_list_is_taken_whole_or_not_at_all() {
        let modes = Modes::default();
        let mut control = page(&modes, CONTROL, 0);
        control[4] |= 0x08;
        let mut list = control.clone();
        list.extend(&control[..7]);
        assert_eq!(change(&modes, &list, false), Err(Sense::PARAMETER_LIST_LENGTH));
        assert!(modes.is_default());
        assert_eq!(modes.select(false, false, 8, &[0; 3]), Err(Sense::PARAMETER_LIST_LENGTH));
        assert_eq!(modes.select(true, false, 8, &[]), Ok(false));
    }

    #[test]
    fn saved_and_unknown_pages_are_refused() {
        let modes = Modes::default();
        let ask = |question| sense(&modes, question, PLAIN);
        assert_eq!(ask(Question { control: 3, ..ASK }), Err(Sense::SAVING_NOT_SUPPORTED));
        assert!(ask(Question { page: 0x02, ..ASK }).is_err());
        assert!(ask(Question { subpage: 1, ..ASK }).is_err());
    }

    proptest! {
        #[test]
        fn any_list_is_read_without_panic(
            ten: bool,
            list in proptest::collection::vec(any::<u8>(), 0..80),
            known: bool,
        ) {
            let mut list = list;
            if known && list.len() > 12 {
                // Further than the header, most of the time.
                list[..8].fill(0);
                list[if ten { 8 } else { 4 }] = CONTROL;
            }
            let modes = Modes::default();
            if modes.select(ten, false, 8, &list).is_err() {
                prop_assert!(modes.is_default());
            }
        }
    }
}
