//! About the library itself.

use std::ffi::c_char;

/// Version of this header. Within one major version of the library it only grows by additions: a program that was
/// compiled against a smaller number goes on working. Version 1 is a first taste: before the library's own version 1.0,
/// functions may still change.
pub const RUNTIME_ABI_VERSION: u32 = 1;

/// The version of the library, for example "0.1.0". A static string, never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The RUNTIME_ABI_VERSION that the library was built with. A program that needs a newer one than this should
/// refuse to go on.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_abi_version() -> u32 {
    RUNTIME_ABI_VERSION
}
