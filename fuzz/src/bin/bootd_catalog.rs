//! The catalog of a volume store.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::catalog(data);
});
