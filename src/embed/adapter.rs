//! Adapters of a model, and mixtures of them.

use super::load::{FNV, fnv};
use super::model::{Model, Ready};
use crate::error::{Error, Result};
use crate::format::peft::{self, AdapterConfig, LoraWeights, TargetModules};
use crate::format::quant::dequantise_row;
use crate::tensor::HostTensor;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// An adapter of one model. Its weights can be replaced: requests that began with the older ones end with them.
pub struct Adapter {
    /// What the engine knows it by.
    name: String,
    content: Mutex<Content>,
    model: Arc<Model>,
}

#[derive(Clone)]
struct Content {
    weights: Arc<peft::Adapter>,
    version: u64,
    hash: u64,
}

/// Adapters with their scales, all of one model.
pub type Blend = Vec<(Arc<Adapter>, f32)>;

/// Names are never used twice.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Adapter {
    /// Makes an adapter available.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it does not fit the model or its largest rank; those of [`Model::loaded`].
    pub fn new(model: &Arc<Model>, weights: peft::Adapter) -> Result<Arc<Self>> {
        let name = format!("adapter-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        model.ready()?.engine.load_adapter(&name, &weights)?;
        let content = Mutex::new(Content::new(weights));
        Ok(Arc::new(Self { name, content, model: model.clone() }))
    }

    /// Puts other weights in its place, for all requests that begin from now on.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub fn replace(&self, weights: peft::Adapter) -> Result<()> {
        self.model.ready()?.engine.load_adapter(&self.name, &weights)?;
        *self.content.lock().unwrap_or_else(PoisonError::into_inner) = Content::new(weights);
        Ok(())
    }

    /// The model that it belongs to.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Its weights.
    pub fn weights(&self) -> Arc<peft::Adapter> {
        self.content().weights
    }

    /// Stands for its weights, in saved sessions.
    pub fn hash(&self) -> u64 {
        self.content().hash
    }

    fn content(&self) -> Content {
        self.content.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        if let Ok(ready) = self.model.ready() {
            let _ = ready.engine.unload_adapter(&self.name);
        }
    }
}

impl Content {
    fn new(weights: peft::Adapter) -> Self {
        let hash = weights.modules.iter().fold(FNV, |hash, (name, lora)| {
            let hash = fnv(fnv(hash, name.as_bytes()), &lora.scale.to_le_bytes());
            fnv(fnv(hash, &lora.a.data), &lora.b.data)
        });
        Self { weights: Arc::new(weights), version: NEXT.fetch_add(1, Ordering::Relaxed), hash }
    }
}

/// How many mixtures a model remembers.
const REMEMBERED: usize = 16;

/// Names of mixtures that the engine has, the oldest first.
#[derive(Default)]
pub(super) struct Blends(VecDeque<String>);

/// What the engine knows a mixture by; made where it does not know it yet.
///
/// # Errors
/// [`Error::Invalid`] for adapters of another model, scales that are no numbers, and ranks that add up to more than the model's
/// largest.
pub(super) fn resolve(ready: &Ready, model: &Arc<Model>, blend: &Blend) -> Result<Option<String>> {
    for (adapter, scale) in blend {
        if !Arc::ptr_eq(adapter.model(), model) {
            return Err(Error::invalid("an adapter belongs to another model"));
        }
        if !scale.is_finite() {
            return Err(Error::invalid(format!("an adapter's scale is {scale}")));
        }
    }
    match blend.as_slice() {
        [] => return Ok(None),
        [(adapter, scale)] if *scale == 1.0 => return Ok(Some(adapter.name.clone())),
        _ => {}
    }
    let parts: Vec<(Content, f32)> = blend.iter().map(|(adapter, scale)| (adapter.content(), *scale)).collect();
    let names: Vec<String> = parts.iter().map(|(content, scale)| format!("{}*{scale}", content.version)).collect();
    let name = format!("blend-{}", names.join("+"));
    let mut blends = ready.blends.lock().unwrap_or_else(PoisonError::into_inner);
    if !blends.0.contains(&name) {
        ready.engine.load_adapter(&name, &mix(&parts)?)?;
        blends.0.push_back(name.clone());
        if blends.0.len() > REMEMBERED
            && let Some(oldest) = blends.0.pop_front()
        {
            let _ = ready.engine.unload_adapter(&oldest);
        }
    }
    Ok(Some(name))
}

/// Σ scale · B · A as one adapter: the As stand above each other, the scaled Bs beside each other.
fn mix(parts: &[(Content, f32)]) -> Result<peft::Adapter> {
    let mut sides = BTreeMap::<&str, (Vec<f32>, Vec<(usize, Vec<f32>)>, usize)>::new();
    for (content, scale) in parts {
        if content.weights.config.use_dora {
            return Err(Error::unsupported("a mix with a DoRA adapter: the lengths of its rows belong to it alone"));
        }
        for (module, lora) in &content.weights.modules {
            let (a, bs, inputs) = sides.entry(module).or_default();
            *inputs = lora.a.cols();
            a.extend(numbers(&lora.a)?);
            let b = numbers(&lora.b)?.into_iter().map(|x| x * lora.scale * scale).collect();
            bs.push((lora.a.rows(), b));
        }
    }
    let mut modules = BTreeMap::new();
    let mut largest = 0;
    for (module, (a, bs, inputs)) in sides {
        let rank: usize = bs.iter().map(|(rank, _)| rank).sum();
        largest = largest.max(rank);
        let outputs = bs.first().map_or(0, |(rank, b)| b.len() / rank);
        let mut b = Vec::with_capacity(rank * outputs);
        for row in 0..outputs {
            bs.iter().for_each(|(rank, part)| b.extend_from_slice(&part[row * rank..(row + 1) * rank]));
        }
        let a = HostTensor::from_f32(vec![rank, inputs], &a)?;
        let b = HostTensor::from_f32(vec![outputs, rank], &b)?;
        modules.insert(module.to_owned(), LoraWeights { a, b, scale: 1.0, magnitude: None });
    }
    let names = modules.keys().cloned().collect();
    Ok(peft::Adapter {
        config: AdapterConfig::new(largest, largest as f64, TargetModules::List(names)),
        modules,
        saved: BTreeMap::new(),
    })
}

fn numbers(tensor: &HostTensor) -> Result<Vec<f32>> {
    let mut numbers = vec![0.0; tensor.len()];
    dequantise_row(tensor.dtype, &tensor.data, &mut numbers)?;
    Ok(numbers)
}
