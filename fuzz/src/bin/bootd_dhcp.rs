//! DHCP requests and their answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::dhcp(data);
});
