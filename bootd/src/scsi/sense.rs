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
        if let Some((byte, bit)) = self.field {
            bytes[15] = 0x80 | 0x40 | 0x08 | (bit & 7);
            bytes[16..18].copy_from_slice(&byte.to_be_bytes());
        }
        bytes
    }

    /// Descriptor format (SPC-4 section 4.5.2), for REQUEST SENSE that asks for it.
    pub fn to_descriptor(self) -> Vec<u8> {
        vec![0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]
    }
}
