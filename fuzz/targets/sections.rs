//! Opening index and delete files whose sections have the right checksums.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| elanus_storage::fuzzing::sections(bytes));
