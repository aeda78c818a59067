//! Adapters: LoRA weights that answer instead of the plain model, or several together.

use super::engine::{place, release};
use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::handle::Handles;
use super::model::{MODELS, runtime_model};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use super::text;
use crate::embed::{Adapter, Blend};
use crate::error::Error;
use crate::format::Source;
use crate::format::peft::{self, AdapterConfig};
use std::ffi::{c_char, c_void};
use std::path::Path;

/// An adapter of a model. Copy it freely: it is a number, not a pointer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_adapter {
    /// Zero: no adapter.
    pub id: u64,
}

/// An adapter and what its effect is multiplied by.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_adapter_ref {
    /// Of the session's model.
    pub adapter: runtime_adapter,
    /// 1: as it was trained. (0 is 0: no effect.)
    pub scale: f32,
    /// Must be zero.
    pub reserved: u32,
}

/// What a handle stands for.
pub(super) static ADAPTERS: Handles<Adapter> = Handles::new("adapter");

/// Reads an adapter in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors. On success *adapter
/// is the new handle, to be given to runtime_adapter_release once; on failure it is zero.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_adapter_load(
    model: runtime_model,
    path: *const c_char,
    path_len: usize,
    adapter: *mut runtime_adapter,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let (out, path) = unsafe { (place("adapter", adapter)?, text::read("path", path, path_len)?) };
        out.id = 0;
        let model = MODELS.get(model.id)?;
        let weights = peft::Adapter::read(Path::new(path), model.loaded()?.config())?;
        out.id = ADAPTERS.insert(Adapter::new(&model, weights)?)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_adapter_load", error, body) }
}

/// As runtime_adapter_load, from the contents of the two files, which are copied.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_adapter_load_buffer(
    model: runtime_model,
    config_json: *const c_char,
    config_len: usize,
    weights: *const c_void,
    weights_size: usize,
    adapter: *mut runtime_adapter,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let (out, config, bytes) = unsafe {
            let out = place("adapter", adapter)?;
            out.id = 0;
            let config = text::json("config_json", config_json, config_len)?;
            (out, config, text::list("weights", weights.cast::<u8>(), weights_size)?)
        };
        let model = MODELS.get(model.id)?;
        let config = AdapterConfig::from_json("config_json", &config)?;
        let source = Source::from_bytes("weights", bytes.to_vec());
        let weights = peft::Adapter::from_parts(config, &source, model.loaded()?.config())?;
        out.id = ADAPTERS.insert(Adapter::new(&model, weights)?)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_adapter_load_buffer", error, body) }
}

/// Writes an adapter as a folder that runtime_adapter_load and PEFT read. An adapter of that folder is replaced.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_adapter_save(
    adapter: runtime_adapter,
    path: *const c_char,
    path_len: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let adapter = ADAPTERS.get(adapter.id)?;
        // SAFETY: the caller's promise.
        let path = unsafe { text::read("path", path, path_len)? };
        if path.is_empty() {
            return Err(Error::invalid("path is empty").into());
        }
        Ok(adapter.weights().write(Path::new(path))?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_adapter_save", error, body) }
}

/// What an adapter is.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_adapter_info {
    /// sizeof(runtime_adapter_info) of the caller's header.
    pub struct_size: u32,
    /// Largest rank of its modules.
    pub rank: u32,
    /// Linear modules that it changes.
    pub modules: u32,
    /// Zero.
    pub reserved: u32,
    /// Numbers in it.
    pub parameters: u64,
    /// Stands for its contents: equal adapters have equal hashes.
    pub hash: u64,
}

// SAFETY: integers only, no padding.
unsafe impl Versioned for runtime_adapter_info {
    const NAME: &'static str = "runtime_adapter_info";
    const FIRST_SIZE: usize = 32;
}

/// Sets struct_size and clears the rest. NULL is allowed and does nothing.
///
/// # Safety
/// `info` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_adapter_info_init(info: *mut runtime_adapter_info) {
    // SAFETY: the caller's promise.
    shielded("runtime_adapter_info_init", (), || unsafe { init(info) });
}

/// Describes an adapter.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_adapter_get_info(
    adapter: runtime_adapter,
    info: *mut runtime_adapter_info,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let adapter = ADAPTERS.get(adapter.id)?;
        let weights = adapter.weights();
        let value = runtime_adapter_info {
            struct_size: 0,
            rank: weights.modules.values().map(|lora| lora.a.rows()).max().unwrap_or(0) as u32,
            modules: weights.modules.len() as u32,
            reserved: 0,
            parameters: weights.modules.values().map(|lora| (lora.a.len() + lora.b.len()) as u64).sum(),
            hash: adapter.hash(),
        };
        // SAFETY: the caller's promise.
        unsafe { options::write(info, &value) }
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_adapter_get_info", error, body) }
}

/// Gives an adapter back. Sessions that use it keep it until they are released or get others. Zero is allowed and does
/// nothing.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_adapter_release(adapter: runtime_adapter) -> runtime_status {
    release("runtime_adapter_release", &ADAPTERS, adapter.id)
}

/// The caller's adapters with their scales.
///
/// # Safety
/// `adapters` points to `count` readable elements.
pub(super) unsafe fn blend(adapters: *const runtime_adapter_ref, count: usize) -> Result<Blend, Failure> {
    // SAFETY: the caller's promise is passed on.
    let list = unsafe { text::list("adapters", adapters, count)? };
    list.iter().map(|entry| Ok((ADAPTERS.get(entry.adapter.id)?, entry.scale))).collect()
}
