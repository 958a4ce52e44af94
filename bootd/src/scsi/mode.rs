//! MODE SENSE (SPC-4 section 7.5, SBC-3 section 6.5). Nothing can be changed yet.

use super::sense::Sense;

/// What MODE SENSE is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    pub ten: bool,
    pub no_blocks: bool,
    pub control: u8,
    pub page: u8,
    pub subpage: u8,
}

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const EXCEPTIONS: u8 = 0x1c;
const ALL: u8 = 0x3f;

/// A page's current and default values, which are the same.
fn values(page: u8) -> Option<Vec<u8>> {
    let mut body = match page {
        CACHING => vec![0; 20],
        CONTROL => vec![0; 12],
        EXCEPTIONS => vec![0; 12],
        _ => return None,
    };
    body[0] = page;
    body[1] = (body.len() - 2) as u8;
    if page == CACHING {
        body[2] = 0x04; // writes are cached until SYNCHRONIZE CACHE
    }
    if page == CONTROL {
        body[3] = 0x10; // commands may be reordered
        // A busy timeout without end.
        body[8..10].copy_from_slice(&[0xff, 0xff]);
    }
    Some(body)
}

/// The answer, not yet cut to the allocation length.
pub(crate) fn sense(question: Question, blocks: u64, read_only: bool) -> Result<Vec<u8>, Sense> {
    let Question { ten, no_blocks, control, page, subpage } = question;
    if control == 3 {
        return Err(Sense::SAVING_NOT_SUPPORTED);
    }
    if subpage != 0 && !(page == ALL && subpage == 0xff) {
        return Err(Sense::INVALID_FIELD_IN_CDB.at(3, 7));
    }
    let pages = if page == ALL { &[CACHING, CONTROL, EXCEPTIONS][..] } else { &[page] };
    let mut body = Vec::new();
    for page in pages {
        let mut values = values(*page).ok_or(Sense::INVALID_FIELD_IN_CDB.at(2, 5))?;
        if control == 1 {
            // The mask of what can be changed.
            values[2..].fill(0);
        }
        body.extend(values);
    }
    let mut descriptor = Vec::new();
    if !no_blocks {
        descriptor.extend(u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
        descriptor.extend(512_u32.to_be_bytes());
    }
    // Write protection, and DPO and FUA are understood.
    let device = if read_only { 0x80 } else { 0 } | 0x10;
    let header = if ten {
        let length = (6 + descriptor.len() + body.len()) as u16;
        let [high, low] = length.to_be_bytes();
        vec![high, low, 0, device, 0, 0, 0, descriptor.len() as u8]
    } else {
        vec![(3 + descriptor.len() + body.len()) as u8, 0, device, descriptor.len() as u8]
    };
    Ok([header, descriptor, body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: Question =
        Question { ten: false, no_blocks: false, control: 0, page: ALL, subpage: 0 };

    #[test]
    fn lengths_agree_in_both_forms() {
        let six = sense(ASK, 8, false).expect("answered");
        assert_eq!(usize::from(six[0]) + 1, six.len());
        let ten = sense(Question { ten: true, ..ASK }, 8, true).expect("answered");
        assert_eq!(usize::from(u16::from_be_bytes([ten[0], ten[1]])) + 2, ten.len());
        assert_eq!(ten[3] & 0x80, 0x80, "write-protected");
        assert_eq!(six[2] & 0x80, 0);
    }

    #[test]
    fn saved_and_unknown_pages_are_refused() {
        assert_eq!(
            sense(Question { control: 3, ..ASK }, 8, false),
            Err(Sense::SAVING_NOT_SUPPORTED)
        );
        assert!(sense(Question { page: 0x02, ..ASK }, 8, false).is_err());
        let mask = sense(Question { control: 1, page: CACHING, no_blocks: true, ..ASK }, 8, false)
            .expect("answered");
        assert!(mask[6..].iter().all(|byte| *byte == 0));
    }
}
