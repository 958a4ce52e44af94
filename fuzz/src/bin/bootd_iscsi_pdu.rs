//! iSCSI PDUs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::iscsi_pdu(data);
});
