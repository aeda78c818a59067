//! One open adapter: device, queue, what it can do, its errors, its pipelines.

use super::library::Variant;
use crate::backend::{ComputeType, DeviceInfo};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What shaders may use here.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// A software rasteriser: barriers and shared memory are dear.
    pub software: bool,
    /// Tiles of large forward products in f16: asked for, and the adapter has it. The plain twin is f32.
    pub half: bool,
    /// Side of the cooperative matrices (f16 × f16 → f32) that large products may use: unless f32 is asked for.
    pub coop: Option<u32>,
    /// Keys and values are cached in f16 unless f32 is asked for (reading them needs no f16 arithmetic).
    pub half_cache: bool,
    /// Width of a subgroup where subgroup operations work and all subgroups have one width.
    pub subgroup: Option<u32>,
    /// Largest workgroup.
    pub max_group: u32,
    /// Bytes of a workgroup's memory.
    pub max_shared: u32,
    /// Storage buffers that a shader may bind.
    pub max_bindings: u32,
    /// Bytes of one storage binding, a multiple of 256.
    pub max_binding: u64,
    /// Bytes of one buffer, a multiple of 256.
    pub max_buffer: u64,
    /// Alignment of the offset of a storage binding.
    pub align: u64,
}

/// Which family of shaders a device uses. Tests run the ones meant for GPUs on a software adapter too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Variants {
    /// What suits the adapter.
    #[default]
    Auto,
    /// Those for a GPU with subgroups, where the adapter has them.
    Gpu,
    /// Those for a GPU without subgroups.
    Plain,
}

/// A compiled shader and the layout of its bind group.
pub struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// A range that [`Context::map`] has asked for.
pub struct Mapping<'a> {
    buffer: &'a wgpu::Buffer,
    range: std::ops::Range<u64>,
    done: std::sync::mpsc::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

#[derive(Default)]
struct Faults {
    /// Set for good when the device is lost.
    lost: Option<String>,
    /// The first error since the last look.
    error: Option<Error>,
}

/// Shared by the device, its buffers and its executables.
pub struct Context {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: DeviceInfo,
    pub caps: Caps,
    faults: Arc<Mutex<Faults>>,
    pipelines: Mutex<BTreeMap<Variant, Arc<Pipeline>>>,
    staging: Mutex<Option<wgpu::Buffer>>,
    /// Bytes handed to `write_buffer` since the last submit.
    pending: Mutex<u64>,
}

/// How long a callback may take once its submission is done.
const MAP_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// `write_buffer` keeps a copy of everything until the next submit: flush at this many bytes.
const MAX_PENDING: u64 = 64 << 20;
/// Reads larger than this are done in pieces, so that the staging buffer stays small.
const MAX_STAGING: u64 = 32 << 20;

/// Locks, ignoring poison: the values are plain data that stay valid.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An [`Error::Device`] of this backend.
pub fn device_error(message: impl Into<String>) -> Error {
    let message: String = message.into();
    Error::Device { backend: "wgpu", message: message.replace('\n', " ") }
}

const NO_BF16: &str = "the wgpu backend has no bf16 arithmetic: use --dtype auto, f16 or f32";

/// What is asked of an adapter's device.
pub fn required(features: wgpu::Features, limits: wgpu::Limits) -> wgpu::DeviceDescriptor<'static> {
    wgpu::DeviceDescriptor {
        label: Some("runtime"),
        required_features: features,
        required_limits: limits,
        // SAFETY: of the experimental features only cooperative matrices are asked for, and only of adapters that list them;
        // their loads and stores stay inside the bindings like all others (see `pipeline`).
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    }
}

impl Context {
    /// Opens `adapter`.
    pub fn open(
        adapter: &wgpu::Adapter,
        info: DeviceInfo,
        compute: ComputeType,
        variants: Variants,
    ) -> Result<Arc<Self>> {
        if compute == ComputeType::BF16 {
            return Err(Error::unsupported(NO_BF16));
        }
        let wanted = wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_F16
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        let coop = match info.software && variants == Variants::Auto || compute == ComputeType::F32 {
            true => None,
            false => cooperative(adapter),
        };
        let wanted = match coop {
            Some(_) => wanted | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            None => wanted,
        };
        let request = required(adapter.features() & wanted, adapter.limits());
        let made = pollster::block_on(adapter.request_device(&request))
            .map_err(|e| device_error(format!("{}: {e}", info.name)))?;
        Self::on(adapter, made, info, compute, variants, coop)
    }

    /// On a device of `adapter`; `coop` is the side of the cooperative matrices that were asked for.
    pub fn on(
        adapter: &wgpu::Adapter,
        (device, queue): (wgpu::Device, wgpu::Queue),
        info: DeviceInfo,
        compute: ComputeType,
        variants: Variants,
        coop: Option<u32>,
    ) -> Result<Arc<Self>> {
        if compute == ComputeType::BF16 {
            return Err(Error::unsupported(NO_BF16));
        }
        let limits = adapter.limits();
        let faults = Arc::new(Mutex::new(Faults::default()));
        let seen = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            lock(&seen).error.get_or_insert(translate(&error, "a command"));
        }));
        let seen = faults.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lock(&seen).lost = Some(format!("device lost: {message}"));
            }
        });
        let adapter_info = adapter.get_info();
        let one_width = adapter_info.subgroup_min_size == adapter_info.subgroup_max_size;
        let subgroup = device.features().contains(wgpu::Features::SUBGROUP) && one_width;
        let caps = Caps {
            software: info.software && variants == Variants::Auto,
            subgroup: (subgroup && variants != Variants::Plain).then_some(adapter_info.subgroup_min_size),
            coop: coop.filter(|_| subgroup && variants != Variants::Plain),
            half: compute == ComputeType::F16 && device.features().contains(wgpu::Features::SHADER_F16),
            half_cache: compute != ComputeType::F32 && !info.software,
            max_group: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
            max_shared: limits.max_compute_workgroup_storage_size,
            max_bindings: limits.max_storage_buffers_per_shader_stage,
            max_binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 256 * 256,
            max_buffer: limits.max_buffer_size / 256 * 256,
            align: u64::from(limits.min_storage_buffer_offset_alignment),
        };
        Ok(Arc::new(Self {
            device,
            queue,
            info,
            caps,
            faults,
            pipelines: Mutex::new(BTreeMap::new()),
            staging: Mutex::new(None),
            pending: Mutex::new(0),
        }))
    }

    /// The error that the driver reported since the last call, if any.
    pub fn check(&self) -> Result<()> {
        let mut faults = lock(&self.faults);
        if let Some(message) = &faults.lost {
            return Err(device_error(message.clone()));
        }
        faults.error.take().map_or(Ok(()), Err)
    }

    /// A buffer of `bytes` (rounded up to 256), zeroed.
    pub fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let size = bytes.max(4).next_multiple_of(256);
        if size > self.caps.max_buffer {
            let message =
                format!("{size} bytes for '{label}': one buffer of this adapter holds {}", self.caps.max_buffer);
            return Err(Error::OutOfMemory { backend: "wgpu", message });
        }
        self.check()?;
        self.guarded(&format!("{size} bytes for '{label}'"), || {
            let desc = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
            self.device.create_buffer(&desc)
        })
    }

    /// A buffer that shaders use and that can be copied from and to.
    pub fn storage(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        use wgpu::BufferUsages as U;
        self.buffer(label, bytes, U::STORAGE | U::COPY_DST | U::COPY_SRC)
    }

    /// Runs `make` inside error scopes, so that its errors come back here as values.
    fn guarded<T>(&self, what: &str, make: impl FnOnce() -> T) -> Result<T> {
        let filters = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let made = make();
        let mut failed = None;
        for scope in scopes.into_iter().rev() {
            failed = failed.or(pollster::block_on(scope.pop()));
        }
        failed.map_or(Ok(made), |error| Err(translate(&error, what)))
    }

    /// The pipeline of a variant, compiled at its first use.
    pub fn pipeline(&self, variant: &Variant) -> Result<Arc<Pipeline>> {
        if let Some(found) = lock(&self.pipelines).get(variant) {
            return Ok(found.clone());
        }
        let source = variant.source().map_err(Error::internal)?;
        let entries: Vec<_> = (0..=variant.bindings)
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 => wgpu::BufferBindingType::Uniform,
                        b => wgpu::BufferBindingType::Storage { read_only: variant.read_only >> b & 1 == 1 },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let made = self.guarded(&format!("shader {} {:?}", variant.shader, variant.defines), || {
            let desc = wgpu::ShaderModuleDescriptor {
                label: Some(variant.shader),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            };
            // SAFETY: the shaders are this crate's own. Indices are bounded by live_rows() and the shapes in the
            // parameters; ids, slots, pages and positions that come from the host are clamped or skipped in the
            // shader, and every loop runs to one of those bounds.
            let module =
                unsafe { self.device.create_shader_module_trusted(desc, wgpu::ShaderRuntimeChecks::unchecked()) };
            let layout = self
                .device
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(variant.shader),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            Arc::new(Pipeline { pipeline, layout })
        })?;
        lock(&self.pipelines).insert(variant.clone(), made.clone());
        Ok(made)
    }

    /// Queues a write of whole words; ordered before the next submit.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, data: &[u8]) -> Result<()> {
        let step = (MAX_PENDING / 2) as usize;
        for (i, piece) in data.chunks(step).enumerate() {
            self.queue.write_buffer(buffer, offset + (i * step) as u64, piece);
            let mut pending = lock(&self.pending);
            *pending += piece.len() as u64;
            if *pending >= MAX_PENDING {
                *pending = 0;
                let index = self.queue.submit(None);
                self.wait(index)?;
            }
        }
        self.check()
    }

    /// Waits for a submission.
    pub fn wait(&self, index: wgpu::SubmissionIndex) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index: Some(index), timeout: None };
        self.device.poll(wait).map_err(|e| device_error(e.to_string()))?;
        self.check()
    }

    /// Asks for a range of a buffer to be mapped for reading once the last submission is done with it.
    pub fn map<'a>(&self, buffer: &'a wgpu::Buffer, range: std::ops::Range<u64>) -> Mapping<'a> {
        let (sender, done) = std::sync::mpsc::channel();
        buffer.map_async(wgpu::MapMode::Read, range.clone(), move |result| {
            let _ = sender.send(result);
        });
        Mapping { buffer, range, done }
    }

    /// Waits for the submission that writes a mapped range, and hands its bytes to `take`.
    pub fn finish_map(
        &self,
        mapping: Mapping<'_>,
        index: wgpu::SubmissionIndex,
        take: impl FnOnce(&[u8]),
    ) -> Result<()> {
        self.wait(index)?;
        // A thread that polls at the same time may have taken the callback and not have called it yet.
        let done =
            mapping.done.recv_timeout(MAP_TIMEOUT).map_err(|_| device_error("a buffer was not mapped in time"))?;
        done.map_err(|e| device_error(e.to_string()))?;
        let view = mapping.buffer.get_mapped_range(mapping.range).map_err(|e| device_error(e.to_string()))?;
        take(&view);
        drop(view);
        mapping.buffer.unmap();
        Ok(())
    }

    /// Copies bytes of a buffer to the host after everything submitted so far.
    pub fn read(&self, buffer: &wgpu::Buffer, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check()?;
        let mut staging = lock(&self.staging);
        let mut at = offset;
        for piece in out.chunks_mut((MAX_STAGING - 8) as usize) {
            let start = at / 4 * 4;
            let end = (at + piece.len() as u64).next_multiple_of(4);
            let room = staging.as_ref().map_or(0, wgpu::Buffer::size);
            if room < end - start {
                use wgpu::BufferUsages as U;
                *staging = Some(self.buffer(
                    "staging",
                    (end - start).next_power_of_two().max(1 << 16),
                    U::MAP_READ | U::COPY_DST,
                )?);
            }
            let Some(target) = staging.as_ref() else { return Err(Error::internal("no staging buffer")) };
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, start, target, 0, end - start);
            let index = self.queue.submit([encoder.finish()]);
            let mapped = self.map(target, 0..end - start);
            let skip = (at - start) as usize;
            self.finish_map(mapped, index, |bytes| piece.copy_from_slice(&bytes[skip..skip + piece.len()]))?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// Side of the square cooperative matrices of f16 with f32 sums that an adapter has, the largest.
fn cooperative(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType as T;
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SHADER_F16;
    if !adapter.features().contains(needed) {
        return None;
    }
    let list = adapter.cooperative_matrix_properties();
    let square = list.iter().filter(|m| m.m_size == m.n_size && m.n_size == m.k_size && [8, 16].contains(&m.m_size));
    square.filter(|m| m.ab_type == T::F16 && m.cr_type == T::F32).map(|m| m.m_size).max()
}

/// wgpu's error as ours.
fn translate(error: &wgpu::Error, what: &str) -> Error {
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { backend: "wgpu", message: what.to_string() },
        other => device_error(format!("{what}: {other}")),
    }
}
