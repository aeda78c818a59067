//! Training jobs on a loaded model.

use super::adapter::{ADAPTERS, runtime_adapter};
use super::engine::{place, release};
use super::error::{Failure, runtime_error};
use super::guard::{guarded, shielded};
use super::handle::Handles;
use super::model::{MODELS, runtime_model};
use super::options::{self, Versioned, init};
use super::status::runtime_status;
use super::text;
use crate::embed::{Adapter, Training};
use crate::error::Error;
use crate::train::preference::{DEFAULT_BETA, Preference, PreferenceLoss};
use crate::train::{LossOn, Optim, Recipe, Schedule};
use std::ffi::c_char;
use std::path::{Path, PathBuf};

/// A training job: LoRA fine-tuning on a model that goes on serving. Copy it freely: it is a number, not a pointer.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_training {
    /// Zero: no job.
    pub id: u64,
}

/// The learning rate falls in a straight line to 0.
pub const RUNTIME_SCHEDULE_LINEAR: i32 = 0;
/// It falls along a cosine.
pub const RUNTIME_SCHEDULE_COSINE: i32 = 1;
/// It stays, after the warm-up.
pub const RUNTIME_SCHEDULE_CONSTANT: i32 = 2;

/// AdamW with 32-bit state.
pub const RUNTIME_OPTIMIZER_ADAMW: i32 = 0;
/// AdamW with 8-bit moments: a quarter of the memory.
pub const RUNTIME_OPTIMIZER_ADAMW_8BIT: i32 = 1;

/// No preference tuning: the job takes examples.
pub const RUNTIME_PREFERENCE_NONE: i32 = 0;
/// DPO: the job takes pairs of answers.
pub const RUNTIME_PREFERENCE_DPO: i32 = 1;
/// The hinge loss on DPO's margin.
pub const RUNTIME_PREFERENCE_HINGE: i32 = 2;
/// IPO.
pub const RUNTIME_PREFERENCE_IPO: i32 = 3;
/// ORPO: without a reference model.
pub const RUNTIME_PREFERENCE_ORPO: i32 = 4;

/// The loss counts what the model itself has to say.
pub const RUNTIME_LOSS_ASSISTANT: i32 = 0;
/// The loss counts every token.
pub const RUNTIME_LOSS_ALL: i32 = 1;

/// Several short examples share a row of max_length tokens; they do not see each other.
pub const RUNTIME_TRAINING_PACKING: u32 = 1;
/// Compute activations again in the backward pass: less memory, more time.
pub const RUNTIME_TRAINING_RECOMPUTE: u32 = 2;
/// Examples in the order in which they were added, in every epoch.
pub const RUNTIME_TRAINING_IN_ORDER: u32 = 4;

/// How to train. Zero in a field means its default; where 0 itself makes sense, -1 stands for it.
#[repr(C)]
#[derive(Clone, Copy)]
#[allow(non_camel_case_types, reason = "the name that C sees")]
pub struct runtime_training_options {
    /// sizeof(runtime_training_options) of the caller's header.
    pub struct_size: u32,
    /// LoRA rank. 0: the initial adapter's, else 16.
    pub rank: u32,
    /// LoRA alpha: the product is scaled by alpha / rank. 0: the initial adapter's, else 16.
    pub alpha: f64,
    /// Peak learning rate. 0: 2e-4.
    pub learning_rate: f64,
    /// Decoupled weight decay. 0: 0.01; -1: none.
    pub weight_decay: f64,
    /// Norm that the gradient is clipped to. 0: 1; -1: no clipping.
    pub max_grad_norm: f64,
    /// Passes over the examples; excludes max_steps. Both 0: 3.
    pub epochs: f64,
    /// Optimizer steps; excludes epochs.
    pub max_steps: u32,
    /// Dropout on the adapter's input, below 1.
    pub dropout: f32,
    /// Examples of a micro-batch. 0: 2.
    pub batch_size: u32,
    /// Micro-batches of an optimizer step. 0: 4.
    pub grad_accum: u32,
    /// Tokens after which an example is cut. 0: 1024, or the model's context where that is shorter.
    pub max_length: u32,
    /// Steps over which the learning rate rises. 0: 5; -1: none.
    pub warmup_steps: i32,
    /// One of RUNTIME_SCHEDULE.
    pub schedule: i32,
    /// One of RUNTIME_OPTIMIZER.
    pub optimizer: i32,
    /// One of RUNTIME_LOSS.
    pub loss: i32,
    /// RUNTIME_TRAINING flags, added up.
    pub flags: u32,
    /// Decides the initial adapter, the order of examples and the dropout. 0: 3407.
    pub seed: u64,
    /// Comes back in the job's events.
    pub userdata: u64,
    /// Projections that get an adapter, separated by commas: "q_proj,v_proj". NULL: all seven.
    pub target_modules: *const c_char,
    /// Bytes of target_modules; SIZE_MAX: NUL-terminated.
    pub target_modules_len: usize,
    /// A checkpoint of runtime_training_checkpoint to go on from; the examples must be the same. NULL: none.
    pub resume: *const c_char,
    /// Bytes of resume; SIZE_MAX: NUL-terminated.
    pub resume_len: usize,
    /// An adapter to start from; zero: a fresh one.
    pub init_adapter: runtime_adapter,
    /// One of RUNTIME_PREFERENCE: the job then takes pairs (runtime_training_add_preference) in place of examples.
    pub preference: i32,
    /// Zero.
    pub reserved: u32,
    /// How near preference tuning stays to the model without adapter; of ORPO the odds ratio's weight. 0: 0.1.
    pub beta: f64,
    /// Adds so many times the mean cross-entropy of the chosen answers; not with ORPO. 0: nothing.
    pub rpo_alpha: f64,
}

// SAFETY: integers, floats and pointers, no padding.
unsafe impl Versioned for runtime_training_options {
    const NAME: &'static str = "runtime_training_options";
    const FIRST_SIZE: usize = std::mem::offset_of!(runtime_training_options, preference);
}

/// What a handle stands for.
pub(super) static TRAININGS: Handles<Training> = Handles::new("training");

/// Sets struct_size and clears the rest: all defaults. NULL is allowed and does nothing.
///
/// # Safety
/// `options` is NULL or points to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_options_init(options: *mut runtime_training_options) {
    // SAFETY: the caller's promise.
    shielded("runtime_training_options_init", (), || unsafe { init(options) });
}

unsafe fn recipe(options: &runtime_training_options, longest: usize) -> Result<Recipe, Failure> {
    // SAFETY: the caller's promise is passed on.
    let (targets, resume) = unsafe {
        let targets = text::read("target_modules", options.target_modules, options.target_modules_len)?;
        (targets, text::read("resume", options.resume, options.resume_len)?)
    };
    let default = Recipe::default();
    let or = |value: f64, default: f64| match value {
        0.0 => default,
        -1.0 => 0.0,
        other => other,
    };
    let count = |value: u32, default: usize| if value == 0 { default } else { value as usize };
    let one_of = |what: &str, value: i32| Failure::from(Error::invalid(format!("{what} is {value}, which is unknown")));
    let known = RUNTIME_TRAINING_PACKING | RUNTIME_TRAINING_RECOMPUTE | RUNTIME_TRAINING_IN_ORDER;
    if options.flags & !known != 0 {
        return Err(Error::invalid(format!("flags is {:#x}, known are {known:#x}", options.flags)).into());
    }
    let has = |flag: u32| options.flags & flag != 0;
    let loss = match options.preference {
        RUNTIME_PREFERENCE_NONE => None,
        RUNTIME_PREFERENCE_DPO => Some(PreferenceLoss::Sigmoid),
        RUNTIME_PREFERENCE_HINGE => Some(PreferenceLoss::Hinge),
        RUNTIME_PREFERENCE_IPO => Some(PreferenceLoss::Ipo),
        RUNTIME_PREFERENCE_ORPO => Some(PreferenceLoss::Orpo),
        other => return Err(one_of("preference", other)),
    };
    if loss.is_none() && (options.beta, options.rpo_alpha) != (0.0, 0.0) {
        return Err(Error::invalid("beta and rpo_alpha belong to preference tuning: set preference").into());
    }
    let beta = if options.beta == 0.0 { DEFAULT_BETA } else { options.beta };
    Ok(Recipe {
        rank: (options.rank > 0).then_some(options.rank as usize),
        alpha: (options.alpha != 0.0).then_some(options.alpha),
        dropout: options.dropout,
        target_modules: targets.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect(),
        batch_size: count(options.batch_size, default.batch_size),
        grad_accum: count(options.grad_accum, default.grad_accum),
        max_length: count(options.max_length, default.max_length.min(longest)),
        lr: if options.learning_rate == 0.0 { default.lr } else { options.learning_rate },
        warmup_steps: match options.warmup_steps {
            0 => default.warmup_steps,
            steps => usize::try_from(steps).unwrap_or(0),
        },
        max_steps: (options.max_steps > 0).then_some(options.max_steps as usize),
        epochs: (options.epochs != 0.0).then_some(options.epochs),
        weight_decay: or(options.weight_decay, default.weight_decay),
        max_grad_norm: or(options.max_grad_norm, default.max_grad_norm),
        schedule: match options.schedule {
            RUNTIME_SCHEDULE_LINEAR => Schedule::Linear,
            RUNTIME_SCHEDULE_COSINE => Schedule::Cosine,
            RUNTIME_SCHEDULE_CONSTANT => Schedule::ConstantWithWarmup,
            other => return Err(one_of("schedule", other)),
        },
        optim: match options.optimizer {
            RUNTIME_OPTIMIZER_ADAMW => Optim::AdamW,
            RUNTIME_OPTIMIZER_ADAMW_8BIT => Optim::AdamW8bit,
            other => return Err(one_of("optimizer", other)),
        },
        loss: match options.loss {
            RUNTIME_LOSS_ASSISTANT => LossOn::Assistant,
            RUNTIME_LOSS_ALL => LossOn::All,
            other => return Err(one_of("loss", other)),
        },
        packing: has(RUNTIME_TRAINING_PACKING),
        recompute: has(RUNTIME_TRAINING_RECOMPUTE),
        shuffle: !has(RUNTIME_TRAINING_IN_ORDER),
        preference: loss.map(|loss| Preference { loss, beta, rpo_alpha: options.rpo_alpha, ..Preference::default() }),
        seed: if options.seed == 0 { default.seed } else { options.seed },
        resume: (!resume.is_empty()).then(|| PathBuf::from(resume)),
        ..default
    })
}

/// Makes a job on a model that is ready. Add examples, seal it, start it. On success *training is the new handle, to be
/// given to runtime_training_release once; on failure it is zero. options may be NULL.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_create(
    model: runtime_model,
    options: *const runtime_training_options,
    training: *mut runtime_training,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let (out, options) = unsafe { (place("training", training)?, options::read(options)?) };
        out.id = 0;
        let model = MODELS.get(model.id)?;
        // SAFETY: the caller's promise.
        let recipe = unsafe { recipe(&options, model.loaded()?.config().max_positions)? };
        let init = match options.init_adapter.id {
            0 => None,
            id => Some(ADAPTERS.get(id)?.weights()),
        };
        let job = Training::new(&model, recipe, init, options.userdata)?;
        let id = TRAININGS.insert(job.clone())?;
        job.named(id);
        out.id = id;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_create", error, body) }
}

/// Adds an example: a JSON object as on a line of `runtime train`'s data, {"messages": [...]}, {"prompt": ...,
/// "completion": ...} or {"text": ...}.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_add_example(
    training: runtime_training,
    example_json: *const c_char,
    example_len: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let job = TRAININGS.get(training.id)?;
        // SAFETY: the caller's promise.
        Ok(job.add_example(&unsafe { text::json("example_json", example_json, example_len)? })?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_add_example", error, body) }
}

/// Adds an example of count tokens; the loss counts those whose mask is not 0 (never the first: nothing predicts it).
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_add_tokens(
    training: runtime_training,
    ids: *const u32,
    mask: *const u8,
    count: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let job = TRAININGS.get(training.id)?;
        // SAFETY: the caller's promise.
        let (ids, mask) = unsafe { (text::list("ids", ids, count)?, text::list("mask", mask, count)?) };
        let counted: Vec<bool> = mask.iter().map(|byte| *byte != 0).collect();
        Ok(job.add_tokens(ids, &counted)?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_add_tokens", error, body) }
}

/// Adds a pair of answers to a job whose options name a preference loss: a JSON object as on a line of `runtime train`'s
/// preference data, {"prompt": ..., "chosen": ..., "rejected": ...}, all texts or all lists of messages; without a prompt both
/// answers begin alike.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_add_preference(
    training: runtime_training,
    pair_json: *const c_char,
    pair_len: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let job = TRAININGS.get(training.id)?;
        // SAFETY: the caller's promise.
        Ok(job.add_preference(&unsafe { text::json("pair_json", pair_json, pair_len)? })?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_add_preference", error, body) }
}

/// Takes no more examples and prepares the job, on a thread of its own. RUNTIME_EVENT_TRAINING_READY says when it is done.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_seal(
    training: runtime_training,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || Ok(TRAININGS.get(training.id)?.seal()?);
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_seal", error, body) }
}

/// Begins to train, or will when the job is ready: RUNTIME_EVENT_TRAINING_STEP events, then one
/// RUNTIME_EVENT_TRAINING_DONE. Requests are served meanwhile; runtime_engine_set_pacing shares the time.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_start(
    training: runtime_training,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || Ok(TRAININGS.get(training.id)?.start()?);
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_start", error, body) }
}

/// Stops between two slices, within a step if need be.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_pause(
    training: runtime_training,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || TRAININGS.get(training.id).map(|object| object.pause(true));
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_pause", error, body) }
}

/// Goes on after runtime_training_pause, where it stopped.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_resume(
    training: runtime_training,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || TRAININGS.get(training.id).map(|object| object.pause(false));
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_resume", error, body) }
}

/// Ends the job: its last event comes at once, with RUNTIME_ERROR_CANCELLED, and the engine stops working on it within a
/// slice. Its adapter can still be had.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_cancel(
    training: runtime_training,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || TRAININGS.get(training.id).map(|object| object.cancel());
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_cancel", error, body) }
}

/// Writes a folder checkpoint-N into the folder path, after N steps: what `resume` of another job's options, and
/// `runtime train --resume`, go on from.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_checkpoint(
    training: runtime_training,
    path: *const c_char,
    path_len: usize,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        let job = TRAININGS.get(training.id)?;
        // SAFETY: the caller's promise.
        let path = unsafe { text::read("path", path, path_len)? };
        if path.is_empty() {
            return Err(Error::invalid("path is empty").into());
        }
        job.checkpoint(Path::new(path))?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_checkpoint", error, body) }
}

/// The adapter as it is after the last step. Where *adapter is zero, a new one is made, to be released by the caller;
/// else that adapter's weights are replaced: sessions that use it answer with the new ones from their next request on.
/// Set *adapter to zero before the first call.
///
/// # Safety
/// Pointers are NULL or valid as described.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn runtime_training_snapshot_adapter(
    training: runtime_training,
    adapter: *mut runtime_adapter,
    error: *mut runtime_error,
) -> runtime_status {
    let body = || {
        // SAFETY: the caller's promise.
        let out = unsafe { place("adapter", adapter)? };
        let job = TRAININGS.get(training.id)?;
        if out.id == 0 {
            out.id = ADAPTERS.insert(Adapter::new(job.model(), job.adapter()?)?)?;
            return Ok(());
        }
        let target = ADAPTERS.get(out.id)?;
        if !std::sync::Arc::ptr_eq(target.model(), job.model()) {
            return Err(Error::invalid("the adapter belongs to another model").into());
        }
        Ok(target.replace(job.adapter()?)?)
    };
    // SAFETY: the caller's promise.
    unsafe { guarded("runtime_training_snapshot_adapter", error, body) }
}

/// Gives a job back; one that runs ends without a further event. Zero is allowed and does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn runtime_training_release(training: runtime_training) -> runtime_status {
    release("runtime_training_release", &TRAININGS, training.id)
}
