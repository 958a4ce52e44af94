//! SCSI CDBs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    croft_bootd::fuzzing::scsi_cdb(data);
});
