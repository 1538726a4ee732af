#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| rrlb::fuzzing::h2_answer(input));
