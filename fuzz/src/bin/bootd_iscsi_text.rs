//! The text of iSCSI logins, and its negotiation.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::iscsi_text(data);
});
