//! Opening and reading a data file whose header and footer have the right checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| elanus_storage::fuzzing::segment(bytes));
