//! The body of a log frame whose checksum is right.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| elanus_storage::fuzzing::record(bytes));
