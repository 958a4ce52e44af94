//! A farm's file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_control::fuzzing::farm(data);
});
