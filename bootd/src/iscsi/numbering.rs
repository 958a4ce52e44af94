//! The numbers of commands and of what is sent (RFC 7143 section 4.2.2).

use super::pdu::{Header, NO_TAG, Pdu, opcode};
use super::session::{End, Session, WINDOW};

impl Session {
    /// Command numbering (RFC 7143 section 4.2.2.1): what is outside the window is dropped without
    /// a word, what is early waits for its turn.
    pub(super) fn in_order(&mut self, pdu: &Pdu<'_>) -> Result<(), End> {
        if pdu.header.immediate() {
            return self.dispatch(&pdu.header, pdu.data);
        }
        let number = pdu.header.u32(24);
        let ahead = number.wrapping_sub(self.exp_cmd_sn);
        if ahead >= WINDOW || number.wrapping_sub(self.max_cmd_sn()).cast_signed() > 0 {
            return Ok(());
        }
        if ahead > 0 {
            if pdu.data.len() <= self.params.first_burst {
                self.held.insert(number, (pdu.header, pdu.data.to_vec()));
            }
            return Ok(());
        }
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        self.dispatch(&pdu.header, pdu.data)?;
        while let Some((header, data)) = self.held.remove(&self.exp_cmd_sn) {
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
            self.dispatch(&header, &data)?;
        }
        Ok(())
    }

    /// The highest command number that may come now. It never falls: a command that comes moves
    /// both `exp_cmd_sn` and `open`.
    fn max_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn.wrapping_add(WINDOW - 1).wrapping_sub(self.open.min(WINDOW))
    }

    /// Fills in the numbers of a PDU that we send; `counts` if it takes a status number.
    pub(super) fn number(&mut self, header: &mut Header, counts: bool) {
        header.set_u32(24, self.stat_sn);
        header.set_u32(28, self.exp_cmd_sn);
        header.set_u32(32, self.max_cmd_sn());
        if counts {
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
    }

    /// Undoes [`Session::number`] and [`Session::closed`] of an answer that was not sent after all.
    pub(super) fn take_back(&mut self, numbered: bool) {
        self.stat_sn = self.stat_sn.wrapping_sub(1);
        let open = if numbered { &mut self.open } else { &mut self.open_immediate };
        *open += 1;
    }

    /// The number of a command that waits for its turn, by its task tag.
    pub(super) fn held_number(&self, tag: u32) -> Option<u32> {
        let mut held = self.held.iter();
        held.find(|(_, (header, _))| header.task_tag() == tag).map(|(number, _)| *number)
    }

    /// Makes a command that waits for its turn do nothing when it comes.
    pub(super) fn drop_held(&mut self, number: u32) {
        if let Some((header, data)) = self.held.get_mut(&number) {
            *header = Header::new(opcode::NOP_OUT);
            header.set_u32(16, NO_TAG);
            data.clear();
        }
    }
}
