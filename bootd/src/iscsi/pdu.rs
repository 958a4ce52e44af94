//! iSCSI PDUs: a header of 48 bytes, additional headers, data (RFC 7143 section 11). Pure: bytes
//! to values and back.

/// Bytes of a basic header segment.
pub(crate) const HEADER: usize = 48;

/// A tag that stands for "none".
pub(crate) const NO_TAG: u32 = 0xffff_ffff;

/// Operation codes: what initiators send (below 0x20) and what we send.
pub(crate) mod opcode {
    pub const NOP_OUT: u8 = 0x00;
    pub const SCSI_COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const NOP_IN: u8 = 0x20;
    pub const SCSI_RESPONSE: u8 = 0x21;
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC_MESSAGE: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
}

/// Reasons of a Reject PDU (RFC 7143 section 11.17.1).
pub(crate) mod reject {
    pub const PROTOCOL_ERROR: u8 = 0x04;
    pub const NOT_SUPPORTED: u8 = 0x05;
    pub const TOO_MANY_IMMEDIATE: u8 = 0x06;
    pub const INVALID_FIELD: u8 = 0x09;
}

/// A basic header segment with accessors for its common fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header(pub [u8; HEADER]);

impl Header {
    /// An empty header of this kind, with the final bit set.
    pub fn new(opcode: u8) -> Self {
        let mut bytes = [0; HEADER];
        bytes[0] = opcode;
        bytes[1] = 0x80;
        Self(bytes)
    }

    pub fn opcode(&self) -> u8 {
        self.0[0] & 0x3f
    }

    pub fn immediate(&self) -> bool {
        self.0[0] & 0x40 != 0
    }

    pub fn is_final(&self) -> bool {
        self.0[1] & 0x80 != 0
    }

    /// Bytes of additional header segments.
    pub fn ahs_length(&self) -> usize {
        usize::from(self.0[4]) * 4
    }

    /// Bytes of data, without padding.
    pub fn data_length(&self) -> usize {
        usize::from(self.0[5]) << 16 | usize::from(self.0[6]) << 8 | usize::from(self.0[7])
    }

    pub fn lun(&self) -> u64 {
        u64::from(self.u32(8)) << 32 | u64::from(self.u32(12))
    }

    pub fn task_tag(&self) -> u32 {
        self.u32(16)
    }

    /// Four bytes as a number.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    pub fn set_u32(&mut self, at: usize, value: u32) -> &mut Self {
        self.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn set_data_length(&mut self, length: usize) -> &mut Self {
        self.0[5..8].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
        self
    }

    pub fn set_byte(&mut self, at: usize, value: u8) -> &mut Self {
        self.0[at] = value;
        self
    }
}

/// Which digests follow headers and data (RFC 7143 section 13.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    pub header: bool,
    pub data: bool,
}

/// One received PDU; its data lies in the buffer it was found in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pdu<'a> {
    pub header: Header,
    pub data: &'a [u8],
}

/// What stands at the start of a buffer.
#[derive(Debug)]
pub(crate) enum Parsed<'a> {
    /// Not a whole PDU yet: this many bytes are needed at least.
    Need(usize),
    /// A whole one, and its length on the wire.
    Whole(Pdu<'a>, usize),
}

/// Bytes that cannot be a PDU of this connection: it must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PduFault {
    #[error("a data segment of {0} bytes is longer than was declared")]
    TooLong(usize),
    #[error("a header's digest is wrong")]
    HeaderDigest,
    #[error("a data segment's digest is wrong")]
    DataDigest,
}

/// Looks for a PDU at the start of `bytes`. `max_data` bounds its data segment.
pub(crate) fn parse(
    bytes: &[u8],
    digests: Digests,
    max_data: usize,
) -> Result<Parsed<'_>, PduFault> {
    let Some(basic) = bytes.first_chunk::<HEADER>() else {
        return Ok(Parsed::Need(HEADER));
    };
    let header = Header(*basic);
    let length = header.data_length();
    if length > max_data {
        return Err(PduFault::TooLong(length));
    }
    let headers = HEADER + header.ahs_length();
    let data_at = headers + if digests.header { 4 } else { 0 };
    let padded = length.next_multiple_of(4);
    let digest = if digests.data && length > 0 { 4 } else { 0 };
    let total = data_at + padded + digest;
    if bytes.len() < total {
        return Ok(Parsed::Need(total));
    }
    if digests.header && !digest_fits(&bytes[..headers], &bytes[headers..data_at]) {
        return Err(PduFault::HeaderDigest);
    }
    let data_end = data_at + padded;
    if digest != 0 && !digest_fits(&bytes[data_at..data_end], &bytes[data_end..total]) {
        return Err(PduFault::DataDigest);
    }
    Ok(Parsed::Whole(Pdu { header, data: &bytes[data_at..data_at + length] }, total))
}

fn digest_fits(bytes: &[u8], digest: &[u8]) -> bool {
    // Digests travel with their bytes in little-endian order.
    crc32c::crc32c(bytes).to_le_bytes() == digest
}

/// Appends a PDU whose data `fill` writes; the header's data length is set here.
///
/// # Errors
/// What `fill` says; then nothing is appended.
pub(crate) fn put_with<E>(
    out: &mut bytes::BytesMut,
    header: &mut Header,
    digests: Digests,
    length: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    header.set_data_length(length);
    out.extend_from_slice(&header.0);
    if digests.header {
        let sum = crc32c::crc32c(&header.0);
        out.extend_from_slice(&sum.to_le_bytes());
    }
    let data_at = out.len();
    let padded = length.next_multiple_of(4);
    out.resize(data_at + padded, 0);
    if let Err(error) = fill(&mut out[data_at..data_at + length]) {
        out.truncate(start);
        return Err(error);
    }
    if digests.data && length > 0 {
        let sum = crc32c::crc32c(&out[data_at..]);
        out.extend_from_slice(&sum.to_le_bytes());
    }
    Ok(())
}

/// Appends a PDU with this data.
pub(crate) fn put(out: &mut bytes::BytesMut, header: &mut Header, digests: Digests, data: &[u8]) {
    let copied: Result<(), std::convert::Infallible> =
        put_with(out, header, digests, data.len(), |place| {
            place.copy_from_slice(data);
            Ok(())
        });
    match copied {
        Ok(()) => {}
        Err(never) => match never {},
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    const BOTH: Digests = Digests { header: true, data: true };

    #[test]
    fn a_pdu_reads_back_with_and_without_digests() {
        for digests in [Digests::default(), BOTH] {
            let mut out = BytesMut::new();
            put(&mut out, Header::new(opcode::NOP_IN).set_u32(16, 7), digests, b"hello");
            put(&mut out, &mut Header::new(opcode::R2T), digests, b"");
            let Ok(Parsed::Whole(first, length)) = parse(&out, digests, 100) else {
                panic!("no PDU");
            };
            assert_eq!((first.header.task_tag(), first.data), (7, &b"hello"[..]));
            let Ok(Parsed::Whole(second, rest)) = parse(&out[length..], digests, 100) else {
                panic!("no PDU");
            };
            assert_eq!(second.header.opcode(), opcode::R2T);
            assert_eq!(length + rest, out.len());
            assert!(
                matches!(parse(&out[..length - 1], digests, 100), Ok(Parsed::Need(n)) if n == length)
            );
            assert!(matches!(parse(&out, digests, 4), Err(PduFault::TooLong(5))));
        }
    }

    #[test]
    fn a_flipped_bit_is_seen_by_the_digests() {
        let mut out = BytesMut::new();
        put(&mut out, &mut Header::new(opcode::NOP_IN), BOTH, b"hello");
        for (at, fault) in [(20, PduFault::HeaderDigest), (53, PduFault::DataDigest)] {
            let mut bytes = out.to_vec();
            bytes[at] ^= 4;
            assert_eq!(parse(&bytes, BOTH, 100).err(), Some(fault));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_or_stall(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            header: bool,
            data: bool,
        ) {
            match parse(&bytes, Digests { header, data }, 1 << 16) {
                // Progress: more is asked for than there is, and never more than a PDU can have.
                Ok(Parsed::Need(n)) => prop_assert!(n > bytes.len() && n < (1 << 16) + 2000),
                Ok(Parsed::Whole(_, n)) => prop_assert!(n >= HEADER && n <= bytes.len()),
                Err(_) => {}
            }
        }
    }
}
