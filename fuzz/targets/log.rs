//! Recovery of a log file of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| elanus_storage::fuzzing::log(bytes));
