//! Sense data: why a command failed (SPC-4 section 4.5).

/// Key and code of a failure, with what can be pointed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sense {
    pub key: u8,
    pub asc: u8,
    pub ascq: u8,
    /// The INFORMATION field, where the command defines one.
    pub information: Option<u32>,
    /// Byte and highest bit of the CDB that is wrong.
    pub field: Option<(u16, u8)>,
}

impl Sense {
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None }
    }

    /// Nothing to report.
    pub const NONE: Self = Self::new(0x00, 0x00, 0x00);
    /// An unrecovered read error.
    pub const READ_ERROR: Self = Self::new(0x03, 0x11, 0x00);
    /// A write error.
    pub const WRITE_ERROR: Self = Self::new(0x03, 0x0c, 0x00);
    /// An internal target failure: a poisoned volume.
    pub const TARGET_FAILURE: Self = Self::new(0x04, 0x44, 0x00);
    /// An unknown operation code.
    pub const INVALID_OPCODE: Self = Self::new(0x05, 0x20, 0x00);
    /// A range beyond the last block.
    pub const LBA_OUT_OF_RANGE: Self = Self::new(0x05, 0x21, 0x00);
    /// A CDB field that cannot be.
    pub const INVALID_FIELD_IN_CDB: Self = Self::new(0x05, 0x24, 0x00);
    /// A reservation released with another type than it has.
    pub const INVALID_RELEASE: Self = Self::new(0x05, 0x26, 0x04);
    /// EXTENDED COPY: more units than can be named.
    pub const TOO_MANY_TARGETS: Self = Self::new(0x05, 0x26, 0x06);
    /// EXTENDED COPY: a way of naming units that is not understood.
    pub const UNSUPPORTED_TARGET: Self = Self::new(0x05, 0x26, 0x07);
    /// EXTENDED COPY: more segments than are done at once.
    pub const TOO_MANY_SEGMENTS: Self = Self::new(0x05, 0x26, 0x08);
    /// EXTENDED COPY: a kind of segment that is not understood.
    pub const UNSUPPORTED_SEGMENT: Self = Self::new(0x05, 0x26, 0x09);
    /// EXTENDED COPY: data in the list, which no segment here needs.
    pub const INLINE_DATA: Self = Self::new(0x05, 0x26, 0x0b);
    /// No room for another registration.
    pub const REGISTRATION_RESOURCES: Self = Self::new(0x05, 0x55, 0x04);
    /// A SANITIZE runs.
    pub const SANITIZE_IN_PROGRESS: Self = Self::new(0x02, 0x04, 0x1b);
    /// A SANITIZE failed: the medium's content is unknown.
    pub const SANITIZE_FAILED: Self = Self::new(0x03, 0x31, 0x03);
    /// EXTENDED COPY: a unit that this session does not see.
    pub const UNREACHABLE_TARGET: Self = Self::new(0x0a, 0x08, 0x04);
    /// EXTENDED COPY stopped for a reason that the list is to blame for.
    pub const COPY_ABORTED: Self = Self::new(0x0a, 0x00, 0x00);
    /// EXTENDED COPY stopped at a unit.
    pub const COPY_TARGET_FAILED: Self = Self::new(0x0a, 0x0d, 0x01);
    /// The task was aborted: nobody sees this.
    pub const ABORTED: Self = Self::new(0x0b, 0x00, 0x06);
    /// No such unit.
    pub const NO_SUCH_UNIT: Self = Self::new(0x05, 0x25, 0x00);
    /// A parameter that cannot be.
    pub const INVALID_PARAMETER: Self = Self::new(0x05, 0x26, 0x00);
    /// A parameter list of the wrong length.
    pub const PARAMETER_LIST_LENGTH: Self = Self::new(0x05, 0x1a, 0x00);
    /// Saved mode pages do not exist.
    pub const SAVING_NOT_SUPPORTED: Self = Self::new(0x05, 0x39, 0x00);
    /// A write to a write-protected unit.
    pub const WRITE_PROTECTED: Self = Self::new(0x07, 0x27, 0x00);
    /// No room for new blocks (SBC-3 section 4.7.3.6).
    pub const SPACE_ALLOCATION_FAILED: Self = Self::new(0x07, 0x27, 0x07);
    /// Data compared differs.
    pub const MISCOMPARE: Self = Self::new(0x0e, 0x1d, 0x00);
    /// Data came that nobody had asked for (RFC 7143 section 11.4.7.2).
    pub const UNEXPECTED_UNSOLICITED_DATA: Self = Self::new(0x0b, 0x0c, 0x0c);
    /// Less or more data came than was asked for (same place).
    pub const INCORRECT_AMOUNT_OF_DATA: Self = Self::new(0x0b, 0x0c, 0x0d);
    /// A data PDU was lost (same place).
    pub const PROTOCOL_SERVICE_CRC: Self = Self::new(0x0b, 0x47, 0x05);

    /// A unit attention.
    pub const fn attention(asc: u8, ascq: u8) -> Self {
        Self::new(0x06, asc, ascq)
    }

    /// The same, pointing at the byte and bit of the CDB that is wrong.
    pub const fn at(mut self, byte: u16, bit: u8) -> Self {
        self.field = Some((byte, bit));
        self
    }

    /// In the format that was asked for.
    pub fn to_bytes(self, descriptors: bool) -> Vec<u8> {
        if descriptors { self.to_descriptor() } else { self.to_fixed() }
    }

    fn field_pointer(self) -> Option<[u8; 3]> {
        let (byte, bit) = self.field?;
        let [high, low] = byte.to_be_bytes();
        Some([0x80 | 0x40 | 0x08 | (bit & 7), high, low])
    }

    /// Fixed format, 18 bytes (SPC-4 section 4.5.3).
    pub fn to_fixed(self) -> Vec<u8> {
        let mut bytes = vec![0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = 10;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        if let Some(information) = self.information {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&information.to_be_bytes());
        }
        if let Some(pointer) = self.field_pointer() {
            bytes[15..18].copy_from_slice(&pointer);
        }
        bytes
    }

    /// Descriptor format (SPC-4 section 4.5.2).
    pub fn to_descriptor(self) -> Vec<u8> {
        let mut bytes = vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0];
        if let Some(information) = self.information {
            bytes.extend([0x00, 0x0a, 0x80, 0]);
            bytes.extend(u64::from(information).to_be_bytes());
        }
        if let Some(pointer) = self.field_pointer() {
            bytes.extend([0x02, 0x06, 0, 0]);
            bytes.extend(pointer);
            bytes.push(0);
        }
        bytes[7] = (bytes.len() - 8) as u8;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_say_the_same() {
        let sense = Sense { information: Some(0x0102), ..Sense::MISCOMPARE }.at(13, 7);
        let (fixed, descriptor) = (sense.to_fixed(), sense.to_descriptor());
        assert_eq!((fixed[2], fixed[12], fixed[13]), (descriptor[1], descriptor[2], descriptor[3]));
        assert_eq!(fixed[3..7], descriptor[16..20]);
        assert_eq!(fixed[15..18], descriptor[24..27]);
        assert_eq!(usize::from(descriptor[7]) + 8, descriptor.len());
        assert_eq!(Sense::NONE.to_bytes(true).len(), 8);
    }
}
