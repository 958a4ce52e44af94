//! Whole iSCSI logins.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::iscsi_login(data);
});
