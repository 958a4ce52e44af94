//! What HAProxy says on its runtime socket.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_agent::fuzzing::haproxy(data);
});
