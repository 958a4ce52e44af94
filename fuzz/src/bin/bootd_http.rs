//! The bytes of an HTTP connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::http(data);
});
