//! cuBLASLt, NVIDIA's library of products, where it is installed: one more candidate for dense products (`candidates.rs`), loaded
//! at run time and never required. Names, numbers and signatures are those of `cublasLt.h`, the same in CUDA 12 and 13.
//!
//! The library thinks in columns: a row-major matrix [rows, cols] is its column-major [cols, rows], so `out = x · Wᵀ` is
//! asked for as `outᵀ = W · xᵀ`.

use super::nvrtc::places;
use crate::error::{Error, Result};
use crate::tensor::DType;
use cudarc::driver::sys;
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, OnceLock};

type Status = c_int;
type Opaque = *mut c_void;

/// cuBLAS's status for a device without memory.
const ALLOC_FAILED: Status = 3;

/// Most scratch that an algorithm may ask for: what NVIDIA advises for Hopper.
const MOST_WORKSPACE: usize = 32 << 20;

/// `CUBLAS_COMPUTE_32F`: sums are f32.
const COMPUTE_F32: c_int = 68;

/// Attributes of a product and of what is asked of an algorithm.
const TRANSPOSE_A: c_int = 3;
const WORKSPACE: c_int = 1;
const REDUCTIONS: c_int = 3;
const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts of a split inner dimension are added in f32, so that a sum is rounded once.
const IN_F32: u32 = 2;

/// The functions that are used.
struct Api {
    create: unsafe extern "C" fn(*mut Opaque) -> Status,
    destroy: unsafe extern "C" fn(Opaque) -> Status,
    version: unsafe extern "C" fn() -> usize,
    desc_create: unsafe extern "C" fn(*mut Opaque, c_int, c_int) -> Status,
    desc_set: Set,
    desc_destroy: unsafe extern "C" fn(Opaque) -> Status,
    layout_create: unsafe extern "C" fn(*mut Opaque, c_int, u64, u64, i64) -> Status,
    layout_destroy: unsafe extern "C" fn(Opaque) -> Status,
    preference_create: unsafe extern "C" fn(*mut Opaque) -> Status,
    preference_set: Set,
    preference_destroy: unsafe extern "C" fn(Opaque) -> Status,
    heuristic: Heuristic,
    matmul: Matmul,
}

/// Handle, product, layouts of A, B, C and D, preference, how many wanted, results, how many found.
type Heuristic = unsafe extern "C" fn(
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    c_int,
    *mut Found,
    *mut c_int,
) -> Status;

/// Handle, product, alpha, A and its layout, B and its layout, beta, C and its layout, D and its layout, algorithm, scratch, its
/// bytes, stream.
type Matmul = unsafe extern "C" fn(
    Opaque,
    Opaque,
    *const f32,
    u64,
    Opaque,
    u64,
    Opaque,
    *const f32,
    u64,
    Opaque,
    u64,
    Opaque,
    *const [u64; 8],
    u64,
    usize,
    Opaque,
) -> Status;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    algorithm: [u64; 8],
    workspace: usize,
    status: Status,
    waves: f32,
    reserved: [c_int; 4],
}

impl Api {
    /// The library, loaded once and for good: it registers with the driver, which outlives every device here.
    fn get() -> Option<&'static Self> {
        static API: OnceLock<Option<Api>> = OnceLock::new();
        API.get_or_init(|| {
            let windows = ["cublasLt64_13.dll", "cublasLt64_12.dll"];
            places(windows, "cublasLt", "cublas").iter().find_map(|path| Self::load(path).ok())
        })
        .as_ref()
    }

    fn load(path: &std::path::Path) -> Result<Self, libloading::Error> {
        // SAFETY: NVIDIA's library has no initialiser that could misbehave, and the signatures are those of cublasLt.h. It is
        // never unloaded, so the pointers stay valid.
        unsafe {
            let library = Library::new(path)?;
            let api = Self {
                create: *library.get(b"cublasLtCreate\0")?,
                destroy: *library.get(b"cublasLtDestroy\0")?,
                version: *library.get(b"cublasLtGetVersion\0")?,
                desc_create: *library.get(b"cublasLtMatmulDescCreate\0")?,
                desc_set: *library.get(b"cublasLtMatmulDescSetAttribute\0")?,
                desc_destroy: *library.get(b"cublasLtMatmulDescDestroy\0")?,
                layout_create: *library.get(b"cublasLtMatrixLayoutCreate\0")?,
                layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy\0")?,
                preference_create: *library.get(b"cublasLtMatmulPreferenceCreate\0")?,
                preference_set: *library.get(b"cublasLtMatmulPreferenceSetAttribute\0")?,
                preference_destroy: *library.get(b"cublasLtMatmulPreferenceDestroy\0")?,
                heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic\0")?,
                matmul: *library.get(b"cublasLtMatmul\0")?,
            };
            std::mem::forget(library);
            Ok(api)
        }
    }
}

fn check(doing: &str, status: Status) -> Result<()> {
    let message = format!("cuBLASLt, {doing}: status {status}");
    match status {
        0 => Ok(()),
        ALLOC_FAILED => Err(Error::OutOfMemory { backend: "cuda", message }),
        _ => Err(Error::Device { backend: "cuda", message }),
    }
}

/// The library with a handle for one device.
pub struct CublasLt {
    api: &'static Api,
    handle: Opaque,
}

// SAFETY: NVIDIA documents the handle as usable from several threads.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// `out[rows, width] = x[rows, inner] · W (+ add)`, every matrix row-major and dense, but for x.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shape {
    pub rows: usize,
    pub width: usize,
    pub inner: usize,
    /// Elements from row to row of x.
    pub pitch: usize,
    /// W lies as [width, inner] (forward); else as [inner, width] (gradients of x).
    pub transposed: bool,
    /// Of x and W: BF16 or F16.
    pub dtype: DType,
    pub out_f32: bool,
    /// A matrix like `out` is added.
    pub add: bool,
}

impl CublasLt {
    /// The library on the device whose context is current; `None` where it is not installed or too old for the device.
    pub fn open() -> Option<Self> {
        let api = Api::get()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one pointer; the handle is destroyed once, in `drop`.
        let status = unsafe { (api.create)(&mut handle) };
        (status == 0).then_some(Self { api, handle })
    }

    /// As 10,000 · major + 100 · minor + patch.
    pub fn version(&self) -> usize {
        // SAFETY: reads a constant.
        unsafe { (self.api.version)() }
    }

    /// Up to `most` ways to compute a product, the one first that the library thinks the fastest; none where it cannot.
    pub fn plans(self: &Arc<Self>, shape: Shape, most: usize) -> Result<Vec<Plan>> {
        let api = self.api;
        let Shape { rows, width, inner, pitch, transposed, dtype, out_f32, .. } = shape;
        let make = |create: &dyn Fn(*mut Opaque) -> Status, destroy| {
            let mut raw = std::ptr::null_mut();
            check("making a description", create(&mut raw))?;
            Ok::<_, Error>(Descriptor { raw, destroy })
        };
        let layout = |dtype, rows: usize, cols: usize, pitch: usize| {
            // SAFETY: writes one pointer.
            make(
                &|raw| unsafe { (api.layout_create)(raw, dtype, rows as u64, cols as u64, pitch as i64) },
                api.layout_destroy,
            )
        };
        // SAFETY: as above.
        let product =
            make(&|raw| unsafe { (api.desc_create)(raw, COMPUTE_F32, data_type(DType::F32)) }, api.desc_destroy)?;
        set(api.desc_set, &product, TRANSPOSE_A, c_int::from(transposed))?;
        let t = data_type(dtype);
        let weight = match transposed {
            true => layout(t, inner, width, inner)?,
            false => layout(t, width, inner, width)?,
        };
        let x = layout(t, inner, rows, pitch)?;
        let out = layout(data_type(if out_f32 { DType::F32 } else { dtype }), width, rows, width)?;
        // SAFETY: as above.
        let preference = make(&|raw| unsafe { (api.preference_create)(raw) }, api.preference_destroy)?;
        set(api.preference_set, &preference, WORKSPACE, MOST_WORKSPACE)?;
        set(api.preference_set, &preference, REDUCTIONS, IN_F32)?;
        // Chunks of rows start anywhere; rows are whole 16 bytes.
        ALIGNMENTS.iter().try_for_each(|matrix| set(api.preference_set, &preference, *matrix, 16u32))?;
        let mut found = vec![Found::default(); most];
        let mut count = 0;
        // SAFETY: every description is alive, and `found` has room for as many as are asked for.
        let status = unsafe {
            (api.heuristic)(
                self.handle,
                product.raw,
                weight.raw,
                x.raw,
                out.raw,
                out.raw,
                preference.raw,
                most as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if status != 0 {
            return Ok(Vec::new());
        }
        let descriptions = Arc::new(Descriptions { product, weight, x, out });
        let plan = |found: &Found| Plan {
            library: self.clone(),
            descriptions: descriptions.clone(),
            algorithm: found.algorithm,
            workspace: found.workspace,
            shape,
        };
        Ok(found.iter().take(count as usize).filter(|found| found.status == 0).map(plan).collect())
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made in `open`, destroyed here only; plans keep the handle alive.
        let _ = unsafe { (self.api.destroy)(self.handle) };
    }
}

/// `cudaDataType`.
fn data_type(dtype: DType) -> c_int {
    match dtype {
        DType::BF16 => 14,
        DType::F16 => 2,
        _ => 0,
    }
}

type Set = unsafe extern "C" fn(Opaque, c_int, *const c_void, usize) -> Status;

/// Sets an attribute whose type is `T`.
fn set<T>(function: Set, of: &Descriptor, attribute: c_int, value: T) -> Result<()> {
    // SAFETY: the description is alive, and the value is read during the call.
    check("describing a product", unsafe { function(of.raw, attribute, (&raw const value).cast(), size_of::<T>()) })
}

struct Descriptor {
    raw: Opaque,
    destroy: unsafe extern "C" fn(Opaque) -> Status,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made with the function's counterpart, destroyed here only.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

struct Descriptions {
    product: Descriptor,
    weight: Descriptor,
    x: Descriptor,
    out: Descriptor,
}

// SAFETY: descriptions are plain host memory that is only read once they are made.
unsafe impl Send for Descriptions {}
// SAFETY: as above.
unsafe impl Sync for Descriptions {}

/// One way to compute a product, ready to be used again and again.
pub struct Plan {
    library: Arc<CublasLt>,
    descriptions: Arc<Descriptions>,
    algorithm: [u64; 8],
    /// Bytes of scratch that it needs.
    pub workspace: usize,
    shape: Shape,
}

/// A plan with the addresses that it works on.
pub struct Call {
    pub plan: Arc<Plan>,
    pub x: u64,
    pub weight: u64,
    /// What is added; `out` where nothing is.
    pub add: u64,
    pub out: u64,
    /// `plan.workspace` bytes.
    pub workspace: u64,
}

impl Call {
    /// For profiles.
    pub fn label(&self) -> String {
        let Shape { rows, width, inner, .. } = self.plan.shape;
        format!("cublaslt {rows} × {width} × {inner}")
    }

    /// Puts the product on a stream of the context.
    pub fn submit(&self, stream: sys::CUstream) -> Result<()> {
        let plan = &*self.plan;
        let d = &*plan.descriptions;
        let (alpha, beta) = (1.0, if plan.shape.add { 1.0 } else { 0.0 });
        // SAFETY: the descriptions are those that the algorithm was found for; the executable keeps alive what the addresses
        // point to, and alpha and beta are read during the call.
        let status = unsafe {
            (plan.library.api.matmul)(
                plan.library.handle,
                d.product.raw,
                &alpha,
                self.weight,
                d.weight.raw,
                self.x,
                d.x.raw,
                &beta,
                self.add,
                d.out.raw,
                self.out,
                d.out.raw,
                &plan.algorithm,
                self.workspace,
                plan.workspace,
                stream.cast(),
            )
        };
        check("a product", status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_librarys() {
        assert_eq!(size_of::<Found>(), 96);
        assert_eq!(std::mem::offset_of!(Found, workspace), 64);
        assert_eq!(std::mem::offset_of!(Found, status), 72);
    }
}
