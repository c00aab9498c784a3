//! A manifest whose checksum is right.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| elanus_storage::fuzzing::manifest(bytes));
