//! The adapter of a run: where it comes from, and its way between PEFT's form and the flat device buffer.

use super::recipe::{DEFAULT_ALPHA, DEFAULT_RANK, Recipe};
use super::whole;
use crate::error::{Error, Result};
use crate::format::peft::{Adapter, AdapterConfig, LoraWeights, TargetModules};
use crate::model::ModelConfig;
use crate::model::lora::{LoraEntry, LoraLayout, Magnitudes, Projection};
use crate::model::whole::TrainLayout;
use crate::tensor::HostTensor;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// An adapter's configuration, layout and first values.
pub struct Start {
    /// What adapter_config.json will say.
    pub config: AdapterConfig,
    /// Places in the flat buffer.
    pub layout: TrainLayout,
    /// alpha / rank, or alpha / √rank.
    pub scale: f32,
    /// The flat buffer.
    pub params: Vec<f32>,
}

/// A new adapter as PEFT makes it: A from `kaiming_uniform_(a=√5)`, which is uniform within ±1/√inputs; B zero. Magnitudes are
/// the lengths of the weights' rows, which the trainer knows ([`super::Trainer::start_magnitudes`]); here they are 0.
///
/// # Errors
/// [`Error::Invalid`] for unknown target modules.
pub fn fresh(recipe: &Recipe, model: &ModelConfig) -> Result<Start> {
    let rank = recipe.rank.unwrap_or(DEFAULT_RANK);
    let alpha = recipe.alpha.unwrap_or(DEFAULT_ALPHA);
    let targets = recipe.projections()?.unwrap_or_else(|| Projection::ALL.to_vec());
    let names = targets.iter().map(|p| p.name().to_owned()).collect();
    let mut config = AdapterConfig::new(rank, alpha, TargetModules::List(names));
    config.lora_dropout = decimal(recipe.dropout);
    config.use_rslora = recipe.use_rslora.unwrap_or(false);
    config.use_dora = recipe.use_dora.unwrap_or(false);
    let scale = if config.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
    let layout = layout(model, &config, rank, &targets);
    let mut params = vec![0.0; layout.len];
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.seed);
    for entry in &layout.entries {
        let bound = 1.0 / (entry.inputs as f32).sqrt();
        params[entry.a..entry.a + rank * entry.inputs].fill_with(|| rng.random_range(-bound..bound));
    }
    Ok(Start { config, layout: layout.into(), scale: scale as f32, params })
}

fn layout(model: &ModelConfig, config: &AdapterConfig, rank: usize, targets: &[Projection]) -> LoraLayout {
    let layout = LoraLayout::new(model, rank, 1, targets);
    if config.use_dora { layout.with_magnitudes() } else { layout }
}

/// The same decimal number in f64: 0.1f32 becomes 0.1, not 0.10000000149.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// An existing adapter. `origin` names it in messages.
///
/// # Errors
/// [`Error::Invalid`] where the recipe asks for another rank, alpha or other modules; [`Error::Unsupported`] for
/// adapters whose rank or scale differs between modules, or that leave out some layers.
pub fn existing(adapter: &Adapter, origin: &str, recipe: &Recipe, model: &ModelConfig) -> Result<Start> {
    let (rank, alpha) = (adapter.config.r, adapter.config.lora_alpha);
    let differs = |field: &str, value: String, theirs: String| {
        Error::invalid(format!("{field} is {value}, but the adapter {origin} has {theirs}"))
    };
    if let Some(r) = recipe.rank.filter(|r| *r != rank) {
        return Err(differs("rank", r.to_string(), rank.to_string()));
    }
    if let Some(a) = recipe.alpha.filter(|a| *a != alpha) {
        return Err(differs("alpha", a.to_string(), alpha.to_string()));
    }
    let saved = &adapter.config.modules_to_save;
    if !recipe.modules_to_save.is_empty() && recipe.modules_to_save != *saved {
        let theirs = if saved.is_empty() { "none".to_owned() } else { saved.join(", ") };
        return Err(differs("modules_to_save", recipe.modules_to_save.join(", "), theirs));
    }
    let kinds = [
        ("use_rslora", recipe.use_rslora, adapter.config.use_rslora),
        ("use_dora", recipe.use_dora, adapter.config.use_dora),
    ];
    for (field, wanted, theirs) in kinds {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != theirs) {
            return Err(differs(field, wanted.to_string(), theirs.to_string()));
        }
    }
    let targets: Vec<Projection> = Projection::ALL
        .into_iter()
        .filter(|p| (0..model.layers).any(|layer| adapter.modules.contains_key(&p.module(layer))))
        .collect();
    if let Some(wanted) = recipe.projections()?.filter(|wanted| *wanted != targets) {
        let list = |p: &[Projection]| p.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
        return Err(differs("target_modules", list(&wanted), list(&targets)));
    }
    let layout = layout(model, &adapter.config, rank, &targets);
    let unsupported = |what: String| Err(Error::unsupported(format!("training the adapter {origin}: {what}")));
    if let Some(module) = adapter.modules.keys().find(|m| !layout.entries.iter().any(|e| e.module == **m)) {
        return unsupported(format!("it adapts {module}; only projections of the layers can be trained"));
    }
    let mut params = vec![0.0; layout.len];
    let mut scale = None;
    for entry in &layout.entries {
        let Some(weights) = adapter.modules.get(&entry.module) else {
            return unsupported(format!(
                "it has nothing for {}, but for that projection in other layers",
                entry.module
            ));
        };
        if weights.a.rows() != rank || *scale.get_or_insert(weights.scale) != weights.scale {
            return unsupported(format!("rank or alpha of {} differ from other modules'", entry.module));
        }
        write(&weights.a, &mut params[a_range(entry, rank)])?;
        write(&weights.b, &mut params[b_range(entry, rank)])?;
        if let (Some(magnitude), Some(range)) = (&weights.magnitude, magnitude_range(&layout, entry)) {
            write(magnitude, &mut params[range])?;
        }
    }
    let Some(scale) = scale else { return unsupported("it has no weights".into()) };
    let config = AdapterConfig { lora_dropout: decimal(recipe.dropout), ..adapter.config.clone() };
    Ok(Start { config, layout: layout.into(), scale, params })
}

/// Where A lies in the flat buffer.
pub fn a_range(entry: &LoraEntry, rank: usize) -> std::ops::Range<usize> {
    entry.a..entry.a + rank * entry.inputs
}

/// Where B lies in the flat buffer.
pub fn b_range(entry: &LoraEntry, rank: usize) -> std::ops::Range<usize> {
    entry.b..entry.b + rank * entry.outputs
}

/// Where the magnitudes lie in the flat buffer, where there are any.
pub fn magnitude_range(layout: &LoraLayout, entry: &LoraEntry) -> Option<std::ops::Range<usize>> {
    let Some(Magnitudes::Behind(start)) = layout.magnitudes else { return None };
    Some(start + entry.magnitude..start + entry.magnitude + entry.outputs)
}

fn write(tensor: &HostTensor, to: &mut [f32]) -> Result<()> {
    // Adapters are read as f32; the copy also aligns the bytes.
    let bytes = bytemuck::cast_slice_mut::<f32, u8>(to);
    if bytes.len() != tensor.data.len() {
        return Err(Error::internal("an adapter tensor does not fit its place"));
    }
    bytes.copy_from_slice(&tensor.data);
    Ok(())
}

/// Cuts a flat buffer into PEFT's tensors.
///
/// # Errors
/// [`Error::Internal`] for a buffer that is shorter than its layout.
pub fn to_adapter(config: &AdapterConfig, layout: &TrainLayout, scale: f32, flat: &[f32]) -> Result<Adapter> {
    let saved = whole::tensors(layout, flat)?;
    let layout = &layout.lora;
    let short = || Error::internal("the adapter buffer is shorter than its layout");
    let mut modules = BTreeMap::new();
    for entry in &layout.entries {
        let a = flat.get(a_range(entry, layout.rank)).ok_or_else(short)?;
        let b = flat.get(b_range(entry, layout.rank)).ok_or_else(short)?;
        let magnitude = magnitude_range(layout, entry)
            .map(|range| HostTensor::from_f32(vec![entry.outputs], flat.get(range).ok_or_else(short)?));
        let weights = LoraWeights {
            a: HostTensor::from_f32(vec![layout.rank, entry.inputs], a)?,
            b: HostTensor::from_f32(vec![entry.outputs, layout.rank], b)?,
            scale,
            magnitude: magnitude.transpose()?,
        };
        modules.insert(entry.module.clone(), weights);
    }
    Ok(Adapter { config: config.clone(), modules, saved })
}
