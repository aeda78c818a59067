//! What a run makes: an adapter, or in full fine-tuning a model. Either is written to the output folder at the end and to every
//! checkpoint on the way.

use super::adapter::to_adapter;
use super::export::merge_tensors;
use super::whole;
use crate::error::{Error, Result};
use crate::format::Checkpoint;
use crate::format::peft::{Adapter, AdapterConfig};
use crate::format::safetensors::Tensors;
use crate::model::whole::TrainLayout;
use crate::tensor::DType;
use std::path::Path;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// LoRA, with modules that were trained whole beside it or not.
    Adapter(Adapter),
    /// Every weight of the model, f32.
    Model(Tensors),
}

impl Outcome {
    /// The numbers of a run's flat buffer under their names: a model with `full`, else an adapter.
    ///
    /// # Errors
    /// [`Error::Internal`] for a buffer that is shorter than its layout.
    pub(super) fn named(
        full: bool,
        config: &AdapterConfig,
        layout: &TrainLayout,
        scale: f32,
        flat: &[f32],
    ) -> Result<Self> {
        Ok(match full {
            true => Self::Model(whole::tensors(layout, flat)?),
            false => Self::Adapter(to_adapter(config, layout, scale, flat)?),
        })
    }

    /// Writes PEFT's folder, or a folder in Hugging Face's layout: weights in `dtype` (`None`: the model's own), configuration,
    /// tokenizer. `base` is what was trained upon.
    ///
    /// # Errors
    /// [`Error::Io`]; those of [`merge_tensors`].
    pub fn write(&self, folder: &Path, base: &Checkpoint, dtype: Option<DType>) -> Result<()> {
        match self {
            Self::Adapter(adapter) => adapter.write(folder),
            Self::Model(tensors) => merge_tensors(base, tensors, folder, dtype).map(drop),
        }
    }

    /// Reads what [`Outcome::write`] wrote; `full` says which.
    ///
    /// # Errors
    /// Those of [`Adapter::read`] and [`Checkpoint::open`]; [`Error::Invalid`] where the model in the folder is another one.
    pub fn read(folder: &Path, base: &Checkpoint, full: bool) -> Result<Self> {
        if !full {
            return Adapter::read(folder, &base.config).map(Self::Adapter);
        }
        let found = Checkpoint::open(folder)?;
        let same =
            |name: &String| found.tensors.get(name).map(|t| &t.shape) == base.tensors.get(name).map(|t| &t.shape);
        if let Some(name) = base.tensors.keys().find(|name| !same(name)) {
            return Err(Error::invalid(format!("{}: tensor '{name}' does not fit the model", folder.display())));
        }
        Ok(Self::Model(found.tensors))
    }

    /// The adapter.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where it is a model.
    pub fn into_adapter(self) -> Result<Adapter> {
        match self {
            Self::Adapter(adapter) => Ok(adapter),
            Self::Model(_) => Err(Error::unsupported(
                "full_finetuning makes a model, not an adapter: write it, and load it like any other",
            )),
        }
    }

    /// The weights that were trained whole.
    pub fn whole(&self) -> &Tensors {
        match self {
            Self::Adapter(adapter) => &adapter.saved,
            Self::Model(tensors) => tensors,
        }
    }
}
