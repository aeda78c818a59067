//! The CPU backend: f32 throughout, the obvious version of each op. It is the truth for every test and the
//! default where there is no GPU.

mod args;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod cut;
mod device;
mod executable;
mod gemm;
mod ops;
mod simd;
mod weight;

pub use cut::finer_units;
pub use device::{info, open};
