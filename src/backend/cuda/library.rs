//! Compiled kernels: from the program itself where the build had NVRTC, else from the disk cache, else from NVRTC now.

use super::context::device_error;
use super::nvrtc::{HOW_TO_GET_IT, Nvrtc};
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// One file of `kernels/`, or a part of one (`variants.rs`).
pub struct Kernel {
    /// The file's name without the ending: an op's, or `sm90_` and an op's; `attention/64` for a part.
    pub name: &'static str,
    /// The file's text.
    pub source: &'static str,
    /// The compiler option that makes the part.
    pub option: Option<&'static str>,
    /// Machine code for compute capability 9.0a, compressed with zstd.
    pub cubin: Option<&'static [u8]>,
    /// PTX for 8.0 and newer, compressed.
    pub ptx: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// A kernel on the device.
#[derive(Clone, Copy)]
pub struct Function {
    /// The driver's handle; valid as long as the context.
    pub handle: sys::CUfunction,
}

// SAFETY: a handle of a function that the library keeps loaded.
unsafe impl Send for Function {}

impl Function {
    /// Allows blocks to have as much dynamic shared memory as the device has, of which `most` bytes are a block's. The
    /// context is current.
    fn allow_shared(&self, most: usize) -> Result<()> {
        use sys::CUfunction_attribute as A;
        let fail = |e| device_error("asking for shared memory", e);
        let mut own = 0;
        // SAFETY: the function is loaded; writes one integer.
        unsafe {
            sys::cuFuncGetAttribute(&mut own, A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, self.handle)
                .result()
                .map_err(fail)?;
            let left = most as i32 - own;
            sys::cuFuncSetAttribute(self.handle, A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, left)
                .result()
                .map_err(fail)
        }
    }

    /// Blocks of this size that one multiprocessor holds at a time, at least 1. The context is current.
    pub fn blocks_at_once(&self, block: usize, shared: usize) -> Result<usize> {
        let mut blocks = 0;
        // SAFETY: the function is loaded; writes one integer.
        unsafe { sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, self.handle, block as i32, shared) }
            .result()
            .map_err(|e| device_error("asking for a kernel's occupancy", e))?;
        Ok(blocks.max(1) as usize)
    }
}

struct Loaded {
    module: sys::CUmodule,
    functions: HashMap<String, Function>,
}

/// The kernels of one device, loaded file by file when first asked for.
pub struct Library {
    arch: u32,
    max_shared: usize,
    loaded: Mutex<HashMap<&'static str, Loaded>>,
}

impl Library {
    /// `arch` is 10 · major + minor of the compute capability, `max_shared` the most shared memory of a block in bytes.
    pub fn new(arch: u32, max_shared: usize) -> Self {
        Self { arch, max_shared, loaded: Mutex::new(HashMap::new()) }
    }

    /// The kernel `name` of the file `file`. The context is current.
    pub fn function(&self, file: &str, name: &str) -> Result<Function> {
        let kernel = KERNELS
            .iter()
            .find(|kernel| kernel.name == file)
            .ok_or_else(|| Error::internal(format!("there is no kernels/{file}.cu")))?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match loaded.entry(kernel.name) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let image = image(kernel, self.arch)?;
                // SAFETY: a cubin or zero-terminated PTX, as NVRTC made it.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) }
                    .map_err(|e| device_error(&format!("loading kernels/{file}.cu"), e))?;
                entry.insert(Loaded { module, functions: HashMap::new() })
            }
        };
        if let Some(function) = entry.functions.get(name) {
            return Ok(*function);
        }
        let symbol = CString::new(name).map_err(|e| Error::internal(e.to_string()))?;
        // SAFETY: the module stays loaded as long as the library.
        let handle = unsafe { result::module::get_function(entry.module, symbol) }
            .map_err(|e| device_error(&format!("looking for {name} in kernels/{file}.cu"), e))?;
        let function = Function { handle };
        function.allow_shared(self.max_shared)?;
        entry.functions.insert(name.to_owned(), function);
        Ok(function)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        for (_, loaded) in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            // SAFETY: executables keep the context alive, so nothing uses the functions any more.
            let _ = unsafe { result::module::unload(loaded.module) };
        }
    }
}

/// Machine code or PTX that a device of compute capability `arch` runs.
fn image(kernel: &Kernel, arch: u32) -> Result<Vec<u8>> {
    let embedded = if arch == 90 { kernel.cubin } else { kernel.ptx };
    if let Some(compressed) = embedded {
        return zstd::decode_all(compressed)
            .map_err(|e| Error::internal(format!("embedded kernels/{}.cu: {e}", kernel.name)));
    }
    let mut hash = DefaultHasher::new();
    (kernel.source, kernel.option, HEADERS, arch, driver_version()).hash(&mut hash);
    let cached = cache_folder()
        .map(|folder| folder.join(format!("{}-{:016x}.cubin", kernel.name.replace('/', "-"), hash.finish())));
    if let Some(image) = cached.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(image);
    }
    let fail = |message: String| Error::Device { backend: "cuda", message };
    let nvrtc = Nvrtc::find()
        .map_err(|why| fail(format!("this program carries no compiled kernels, and {why}: {HOW_TO_GET_IT}")))?;
    let target = if arch == 90 { "sm_90a".into() } else { format!("sm_{arch}") };
    let file = format!("{}.cu", kernel.name);
    let options: Vec<&str> = kernel.option.into_iter().collect();
    let compiled = nvrtc.compile(&file, kernel.source, HEADERS, &target, &options).map_err(fail)?;
    if let Some(path) = cached {
        // The cache saves time and nothing else: a full or read-only disk is no error. Renaming makes it whole or absent.
        let partial = path.with_extension(format!("{}.partial", std::process::id()));
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(&partial, &compiled.image).and_then(|()| std::fs::rename(&partial, &path));
    }
    Ok(compiled.image)
}

fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: writes one integer.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    version
}

/// `$RUNTIME_CACHE/kernels`, else below the user's cache folder.
fn cache_folder() -> Option<PathBuf> {
    let root = std::env::var_os("RUNTIME_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").or_else(|| std::env::var_os("LOCALAPPDATA")).map(PathBuf::from);
        let base = base.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
        Some(base.join("runtime"))
    })?;
    Some(root.join("kernels"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_build_has_packed_unpacks() {
        for kernel in KERNELS {
            for (arch, packed, magic) in [(90, kernel.cubin, "\x7fELF"), (80, kernel.ptx, "//")] {
                let image = packed.map(|_| image(kernel, arch).unwrap_or_default());
                assert!(image.is_none_or(|image| image.starts_with(magic.as_bytes())), "{} for {arch}", kernel.name);
            }
        }
    }
}
