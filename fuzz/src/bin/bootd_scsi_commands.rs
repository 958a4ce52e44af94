//! SCSI commands with their data, of two sessions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::scsi_commands(data);
});
