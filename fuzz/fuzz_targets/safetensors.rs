//! Any bytes as a safetensors file: an error or tensors, never a panic or a huge allocation.
#![no_main]
use libfuzzer_sys::fuzz_target;
use runtime::format::{Source, safetensors};

fuzz_target!(|data: &[u8]| {
    let source = Source::from_bytes("fuzz.safetensors", data.to_vec());
    drop(safetensors::read(&source, &|_| false));
});
