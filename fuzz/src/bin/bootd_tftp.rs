//! Datagrams to a TFTP server.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::tftp(data);
});
