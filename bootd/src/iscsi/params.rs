//! Operational parameters and their negotiation (RFC 7143 sections 6.2 and 13).

use super::pdu::Digests;
use super::text::{Answer, number};

/// Longest data segment that we take: bytes.
pub(crate) const MAX_RECEIVE: usize = 256 << 10;
/// Longest burst of solicited data, and of data we send as one sequence: bytes.
const MAX_BURST: u32 = 1 << 20;
/// Most data that may come unasked with one command: bytes.
const FIRST_BURST: u32 = 64 << 10;
/// What an initiator takes in a data segment unless it says otherwise (RFC 7143 section 13.12).
pub(crate) const DEFAULT_RECEIVE: usize = 8192;

/// What was agreed for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Params {
    pub digests: Digests,
    /// Longest data segment that the initiator takes.
    pub max_send: usize,
    pub max_burst: usize,
    pub first_burst: usize,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    /// We have named our own MaxRecvDataSegmentLength.
    declared: bool,
}

impl Default for Params {
    /// The defaults of RFC 7143 section 13.
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            max_send: DEFAULT_RECEIVE,
            max_burst: 262_144,
            first_burst: 65_536,
            initial_r2t: true,
            immediate_data: true,
            declared: false,
        }
    }
}

/// A key that cannot be negotiated so: the login fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a login parameter has an impossible value")]
pub(crate) struct InvalidParameter;

impl Params {
    /// Says what we take in a data segment, once.
    pub fn declare(&mut self, answer: &mut Answer) {
        if !std::mem::replace(&mut self.declared, true) {
            answer.push("MaxRecvDataSegmentLength", MAX_RECEIVE);
        }
    }

    /// Answers one operational key.
    ///
    /// # Errors
    /// A value outside the key's range.
    pub fn negotiate(
        &mut self,
        key: &str,
        value: &str,
        answer: &mut Answer,
    ) -> Result<(), InvalidParameter> {
        let within = |least: u32, most: u32| {
            number(value).filter(|n| (least..=most).contains(n)).ok_or(InvalidParameter)
        };
        let flag = || match value {
            "Yes" => Ok(true),
            "No" => Ok(false),
            _ => Err(InvalidParameter),
        };
        let yes_no = |flag| if flag { "Yes" } else { "No" };
        match key {
            "HeaderDigest" | "DataDigest" => {
                // The first of the list that we know, too.
                let chosen = value.split(',').find(|v| matches!(*v, "None" | "CRC32C"));
                let chosen = chosen.ok_or(InvalidParameter)?;
                let on = chosen == "CRC32C";
                if key == "HeaderDigest" {
                    self.digests.header = on;
                } else {
                    self.digests.data = on;
                }
                answer.push(key, chosen);
            }
            "MaxRecvDataSegmentLength" => {
                self.max_send = within(512, 0xff_ffff)? as usize;
                self.declare(answer);
            }
            "MaxBurstLength" => {
                let agreed = within(512, 0xff_ffff)?.min(MAX_BURST);
                self.max_burst = agreed as usize;
                answer.push(key, agreed);
            }
            "FirstBurstLength" => {
                let agreed = within(512, 0xff_ffff)?.min(FIRST_BURST);
                self.first_burst = agreed as usize;
                answer.push(key, agreed);
            }
            "InitialR2T" => {
                self.initial_r2t = flag()?;
                answer.push(key, yes_no(self.initial_r2t));
            }
            "ImmediateData" => {
                self.immediate_data = flag()?;
                answer.push(key, yes_no(self.immediate_data));
            }
            "MaxOutstandingR2T" => {
                within(1, 65_535)?;
                answer.push(key, 1);
            }
            "MaxConnections" => {
                within(1, 65_535)?;
                answer.push(key, 1);
            }
            "DefaultTime2Wait" => answer.push(key, within(0, 3600)?),
            "DefaultTime2Retain" => {
                within(0, 3600)?;
                answer.push(key, 0);
            }
            "ErrorRecoveryLevel" => {
                within(0, 2)?;
                answer.push(key, 0);
            }
            "DataPDUInOrder" | "DataSequenceInOrder" => {
                flag()?;
                answer.push(key, "Yes");
            }
            // Markers are gone since RFC 7143.
            "IFMarker" | "OFMarker" => answer.push(key, "No"),
            "IFMarkInt" | "OFMarkInt" => answer.push(key, "Reject"),
            "iSCSIProtocolLevel" => {
                within(0, 31)?;
                answer.push(key, 1);
            }
            "TaskReporting" => answer.push(key, "RFC3720"),
            _ => answer.push(key, "NotUnderstood"),
        }
        Ok(())
    }

    /// What must hold between keys once all are agreed.
    pub fn settle(&mut self) {
        self.first_burst = self.first_burst.min(self.max_burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_iscsis_wishes_become_ours() {
        let mut params = Params::default();
        let mut answer = Answer::default();
        for (key, value) in [
            ("HeaderDigest", "None"),
            ("DataDigest", "CRC32C,None"),
            ("DefaultTime2Wait", "2"),
            ("ErrorRecoveryLevel", "0"),
            ("InitialR2T", "No"),
            ("ImmediateData", "Yes"),
            ("MaxBurstLength", "16776192"),
            ("FirstBurstLength", "262144"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("X-unknown", "1"),
        ] {
            params.negotiate(key, value, &mut answer).expect("possible");
        }
        assert!(params.digests.data && !params.digests.header);
        assert!(!params.initial_r2t);
        assert_eq!(
            (params.max_burst, params.first_burst, params.max_send),
            (1 << 20, 64 << 10, 256 << 10)
        );
        let text = String::from_utf8_lossy(answer.as_bytes()).into_owned();
        assert!(text.contains("MaxRecvDataSegmentLength=262144\0"));
        assert!(text.ends_with("X-unknown=NotUnderstood\0"));
    }

    #[test]
    fn impossible_values_are_refused() {
        for (key, value) in [
            ("MaxRecvDataSegmentLength", "511"),
            ("MaxBurstLength", "x"),
            ("InitialR2T", "Maybe"),
            ("HeaderDigest", "MD5"),
            ("MaxConnections", "0"),
        ] {
            let negotiated = Params::default().negotiate(key, value, &mut Answer::default());
            assert_eq!(negotiated, Err(InvalidParameter), "{key}={value}");
        }
    }
}
