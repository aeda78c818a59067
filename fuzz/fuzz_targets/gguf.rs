//! Any bytes as a GGUF checkpoint: an error or a model, never a panic or a huge allocation (-malloc_limit_mb).
#![no_main]
use libfuzzer_sys::fuzz_target;
use runtime::format::{Checkpoint, Source};

fuzz_target!(|data: &[u8]| {
    let source = Source::from_bytes("fuzz.gguf", data.to_vec());
    drop(Checkpoint::from_gguf(std::path::Path::new("fuzz.gguf"), &source));
});
