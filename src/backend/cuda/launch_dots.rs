//! Products of up to 4 rows and quantised weights by integer dot products: the plan in `kernels/matmul_dots.cu`.

use super::context::Caps;
use super::launch_few::{Few, Plan, shared_limit};
use crate::tensor::DType;

/// The kernel's name.
pub const DOTS: &str = "matmul_dots";

/// Warps of a block.
const WARPS: usize = 16;

/// Steps of a warp's ring.
const RING: usize = 2;

/// Elements of a step: no row ends within one.
const STEP: usize = 256;

/// How the kernel is launched; `None` where it cannot take the weight, or x does not fit in shared memory.
pub fn dots(few: &Few<'_>, caps: Caps) -> Option<Plan> {
    let most = [1, 2, 4].into_iter().find(|most| *most >= few.rows)?;
    // 16 rows of w by 8 groups.
    let step = match few.dtype {
        DType::Q4_0 => 2304,
        DType::Q4_1 => 2560,
        DType::Q5_0 => 2816,
        DType::Q5_1 => 3072,
        DType::Q4_K => 2368,
        DType::Q5_K => 2880,
        DType::Q6_K => 3392,
        _ => return None,
    };
    let tiles = few.tiles();
    let of_block = tiles.div_ceil(tiles.min(caps.multiprocessors as usize).max(1));
    let x = few.rows * (9 * few.k / 4 + few.k / 64);
    let shared = x + WARPS * RING * step + (of_block + WARPS) * most * 64;
    let fits = few.k.is_multiple_of(STEP) && shared <= shared_limit(caps);
    fits.then_some(Plan { kernel: DOTS, most, block: 32 * WARPS, shared, chunk: few.k, tiles })
}
