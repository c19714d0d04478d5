#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| snapstore::chunk::fuzzing::mounts(bytes));
