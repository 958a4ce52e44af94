//! Superblocks and map pages of a layer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::layer_page(data);
});
