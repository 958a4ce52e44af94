//! The membership that bootd sends to an agent.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_agent::fuzzing::membership(data);
});
