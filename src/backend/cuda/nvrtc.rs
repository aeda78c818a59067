//! NVIDIA's run-time compiler, loaded when it is needed. `build.rs` uses this file too, so it names nothing of the crate.

use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// What a compilation gives.
pub struct Compiled {
    /// A cubin for `sm_…` targets, PTX (with its final zero) for `compute_…` ones.
    pub image: Vec<u8>,
    /// Warnings, and with `--ptxas-options=-v` the registers and spills of each kernel.
    pub log: String,
}

/// A loaded NVRTC.
pub struct Nvrtc {
    library: Library,
    // libnvrtc looks for its builtins by name, so they are loaded first where they lie beside it.
    _builtins: Option<Library>,
    /// Major and minor version.
    pub version: (i32, i32),
}

/// Says what to install where NVRTC is missing.
pub const HOW_TO_GET_IT: &str = "install NVRTC (`pip install nvidia-cuda-nvrtc`, or NVIDIA's CUDA toolkit) and name its \
                                 library in RUNTIME_NVRTC if it lies in an unusual place, or use a release binary, which \
                                 carries compiled kernels";

type Program = *mut c_void;

impl Nvrtc {
    /// Loads the library that RUNTIME_NVRTC names, or the first that is found in the usual places.
    ///
    /// # Errors
    /// A sentence that says what was tried.
    pub fn find() -> Result<Self, String> {
        if let Some(path) = std::env::var_os("RUNTIME_NVRTC") {
            let path = PathBuf::from(path);
            return Self::load(&path).map_err(|e| format!("RUNTIME_NVRTC is {}: {e}", path.display()));
        }
        let places = places(["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"], "nvrtc", "cuda_nvrtc");
        places.iter().find_map(|path| Self::load(path).ok()).ok_or_else(|| {
            let names = places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
            format!("NVRTC is not installed (looked for {})", names.join(", "))
        })
    }

    fn load(path: &Path) -> Result<Self, String> {
        let builtins = path.parent().and_then(|folder| {
            let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
            let mut names: Vec<_> = files
                .filter(|p| {
                    let name = p.file_name().unwrap_or_default().to_string_lossy();
                    name.contains("nvrtc-builtins") && !name.contains(".alt.")
                })
                .collect();
            names.sort();
            // SAFETY: NVIDIA's library has no initialiser that could misbehave.
            unsafe { Library::new(names.first()?) }.ok()
        });
        // SAFETY: as above.
        let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is NVRTC's, unchanged since its first version.
        unsafe {
            let version = symbol::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(&library, b"nvrtcVersion\0")?;
            version(&mut major, &mut minor);
        }
        Ok(Self { library, _builtins: builtins, version: (major, minor) })
    }

    /// Compiles one file for `arch` (`sm_90a`: a cubin; `compute_80`: PTX). `headers` are what `#include` finds.
    ///
    /// # Errors
    /// The compiler's log.
    pub fn compile(
        &self,
        name: &str,
        source: &str,
        headers: &[(&str, &str)],
        arch: &str,
        options: &[&str],
    ) -> Result<Compiled, String> {
        let text = |s: &str| CString::new(s).map_err(|e| e.to_string());
        let (name, source) = (text(name)?, text(source)?);
        let contents = headers.iter().map(|h| text(h.1)).collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|h| text(h.0)).collect::<Result<Vec<_>, _>>()?;
        let mut flags = vec![text(&format!("--gpu-architecture={arch}"))?, text("--std=c++17")?];
        for option in options {
            flags.push(text(option)?);
        }
        let pointers = |list: &[CString]| list.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (contents, names, flags) = (pointers(&contents), pointers(&names), (pointers(&flags), flags));
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: signatures as in nvrtc.h; every pointer is valid for the call, the program is destroyed below.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            let create = symbol::<Create>(&self.library, b"nvrtcCreateProgram\0")?;
            let count = headers.len() as c_int;
            self.check(create(&mut program, source.as_ptr(), name.as_ptr(), count, contents.as_ptr(), names.as_ptr()))?;
            type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
            let compile = symbol::<Compile>(&self.library, b"nvrtcCompileProgram\0")?;
            let done = self.check(compile(program, flags.0.len() as c_int, flags.0.as_ptr()));
            let log = self.bytes(program, b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0");
            let image = match arch.starts_with("sm_") {
                true => self.bytes(program, b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0"),
                false => self.bytes(program, b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0"),
            };
            let destroy =
                symbol::<unsafe extern "C" fn(*mut Program) -> c_int>(&self.library, b"nvrtcDestroyProgram\0")?;
            destroy(&mut program);
            let log = String::from_utf8_lossy(&log?).trim_end_matches('\0').to_owned();
            match done {
                Ok(()) => Ok(Compiled { image: image?, log }),
                Err(error) => Err(format!("{}: {error}\n{log}", name.to_string_lossy())),
            }
        }
    }

    /// # Safety
    /// `program` is alive; the names belong together.
    unsafe fn bytes(&self, program: Program, size: &[u8], get: &[u8]) -> Result<Vec<u8>, String> {
        // SAFETY: signatures as in nvrtc.h; the buffer has the size that the library asked for.
        unsafe {
            let size = symbol::<unsafe extern "C" fn(Program, *mut usize) -> c_int>(&self.library, size)?;
            let get = symbol::<unsafe extern "C" fn(Program, *mut c_char) -> c_int>(&self.library, get)?;
            let mut len = 0;
            self.check(size(program, &mut len))?;
            let mut bytes = vec![0u8; len];
            self.check(get(program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        }
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: signature as in nvrtc.h; the string is static.
        unsafe {
            let text = symbol::<unsafe extern "C" fn(c_int) -> *const c_char>(&self.library, b"nvrtcGetErrorString\0")?;
            Err(CStr::from_ptr(text(code)).to_string_lossy().into_owned())
        }
    }
}

/// # Safety
/// `F` is the symbol's type.
unsafe fn symbol<'a, F>(library: &'a Library, name: &[u8]) -> Result<libloading::Symbol<'a, F>, String> {
    // SAFETY: passed on to the caller.
    unsafe { library.get(name) }.map_err(|e| e.to_string())
}

/// Where a library of CUDA's may lie: by name for the system's loader, in CUDA's usual folders, and in Python environments in
/// sight (`wheel` is the folder of CUDA 12's package there).
pub fn places(windows: [&str; 2], name: &str, wheel: &str) -> Vec<PathBuf> {
    if cfg!(windows) {
        return windows.map(PathBuf::from).to_vec();
    }
    let names = ["so.13", "so.12", "so"].map(|ending| format!("lib{name}.{ending}"));
    let mut list: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    list.extend(names.iter().map(|name| Path::new("/usr/local/cuda/lib64").join(name)));
    let roots = [std::env::var_os("VIRTUAL_ENV").map(PathBuf::from), Some(PathBuf::from(".venv"))];
    for root in roots.into_iter().flatten() {
        let Ok(versions) = std::fs::read_dir(root.join("lib")) else { continue };
        for version in versions.flatten() {
            let nvidia = version.path().join("site-packages/nvidia");
            list.push(nvidia.join("cu13/lib").join(&names[0]));
            list.push(nvidia.join(wheel).join("lib").join(&names[1]));
        }
    }
    list
}
