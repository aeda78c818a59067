//! A million random sequences of calls, in a process of their own: a made-up handle may be another test's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::undocumented_unsafe_blocks, // every call here is one of the C ABI, with pointers to the test's own variables
    missing_docs
)]

#[path = "c_api/calls.rs"]
#[allow(dead_code)]
mod calls;
#[path = "c_api/fuzz.rs"]
mod fuzz;
#[path = "c_api/support.rs"]
#[allow(dead_code)]
mod support;

mod exports {
    pub use runtime::ffi::*;
}

use support::root;

#[test]
fn every_function_is_in_the_table() {
    let read = |name: &str| std::fs::read_to_string(root().join("include").join(name)).unwrap();
    let header = read("runtime.h") + &read("runtime_interop.h");
    let names: Vec<&str> = calls::calls::<fuzz::Fuzz>().iter().map(|(name, _)| *name).collect();
    assert_eq!(names, calls::declared(&header));
    assert!(names.len() >= 70, "{} functions", names.len());
}

#[test]
fn a_million_random_sequences() {
    fuzz::run(1_000_000);
}
