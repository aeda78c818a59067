//! Times of single dispatches, from the device's own clock.

use super::context::Context;
use super::executable::Step;
use crate::backend::Timing;
use crate::error::{Error, Result};

/// Runs `steps` with a timestamp after each.
pub fn profile(context: &Context, steps: &[Step]) -> Result<Vec<Timing>> {
    if !context.device.features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
        return Err(Error::unsupported("this adapter has no timestamps inside passes"));
    }
    let most = wgpu::QUERY_SET_MAX_QUERIES as usize - 1;
    let mut timings = Vec::with_capacity(steps.len());
    for steps in steps.chunks(most) {
        let count = steps.len() as u32 + 1;
        let bytes = u64::from(count) * wgpu::QUERY_SIZE as u64;
        let queries = context.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        use wgpu::BufferUsages as U;
        let resolved = context.buffer("timestamps", bytes, U::QUERY_RESOLVE | U::COPY_SRC)?;
        let mut encoder = context.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.write_timestamp(&queries, 0);
            for (i, step) in (1..).zip(steps) {
                step.encode(&mut pass);
                pass.write_timestamp(&queries, i);
            }
        }
        encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
        context.queue.submit([encoder.finish()]);
        let mut ticks = vec![0u64; count as usize];
        context.read(&resolved, 0, bytemuck::cast_slice_mut(&mut ticks))?;
        let period = f64::from(context.queue.get_timestamp_period()) * 1e-9;
        timings.extend(ticks.windows(2).zip(steps).map(|(pair, step)| Timing {
            label: step.label.clone(),
            seconds: pair[1].saturating_sub(pair[0]) as f64 * period,
        }));
    }
    context.check()?;
    Ok(timings)
}
