//! Queries: reads a client's request from its URL and its headers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| gateway::fuzzing::read_query(input.0, input.1));
