//! Before the first step of several processes: do they all run the same?

use super::Job;
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use serde_json::{Map, Value, json};

/// Fields of a recipe that may differ between processes: where things are on a machine, and what only rank 0 does.
const OWN: [&str; 14] = [
    "model",
    "data",
    "output",
    "eval_data",
    "init_adapter",
    "resume",
    "log",
    "tensorboard",
    "plot",
    "sample_prompts",
    "sample_steps",
    "sample_tokens",
    "save_total_limit",
    "ddp_timeout",
];

/// A change of any bit changes the result; eight bytes at a time, since these may be hundreds of megabytes.
fn hash(bytes: &[u8]) -> String {
    let mix = |h: u64, chunk: &[u8]| {
        let word = chunk.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        (h ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    };
    format!("{:016x}", bytes.chunks(8).fold(bytes.len() as u64 ^ 0xCBF2_9CE4_8422_2325, mix))
}

/// What is loaded: configuration, names, types and shapes of all weights, and the values of those that are plain vectors.
fn model_hash(model: &LoadedModel) -> String {
    let mut text = format!("{:?}", model.config()).into_bytes();
    for (name, tensor) in &model.checkpoint.tensors {
        let dtype = model.weights.get(name).map_or(tensor.dtype, |buffer| buffer.desc().dtype);
        text.extend(format!("{name} {} {dtype} {:?}", tensor.dtype, tensor.shape).bytes());
        // Norms and biases differ between fine-tunes of a model, and are read in a moment.
        if tensor.shape.len() == 1 {
            text.extend_from_slice(&tensor.data);
        }
    }
    hash(&text)
}

impl Job {
    /// What decides the run's numbers, by name.
    fn facts(&self, model: &LoadedModel) -> Result<Map<String, Value>> {
        let recipe = serde_json::to_value(&self.recipe).map_err(|e| Error::internal(e.to_string()))?;
        let mut facts: Map<String, Value> = match recipe {
            Value::Object(fields) => fields.into_iter().filter(|(field, _)| !OWN.contains(&field.as_str())).collect(),
            _ => Map::new(),
        };
        let moments = self.trainer.moments()?;
        let moments: Vec<u8> = moments.values().flat_map(|tensor| hash(&tensor.data).into_bytes()).collect();
        let more = [
            ("the model (hash of its configuration and weights)", json!(model_hash(model))),
            ("the type of activations", json!(model.device.limits().activations.to_string())),
            ("the data (hash of its tokens)", json!(self.data_hash())),
            ("the evaluation data (hash of its tokens)", json!(self.evaluation.as_ref().map(|e| e.hash()))),
            ("the steps done, by the checkpoint", json!(self.done)),
            ("the number of steps", json!(self.total_steps)),
            ("the adapter (hash)", json!(hash(bytemuck::cast_slice(&self.trainer.params()?)))),
            ("the optimizer's state (hash)", json!(hash(&moments))),
        ];
        facts.extend(more.map(|(name, value)| (name.to_owned(), value)));
        Ok(facts)
    }

    /// An error, here and in all other processes, where one is not like rank 0.
    pub(super) fn agree(&self, model: &LoadedModel) -> Result<()> {
        if self.group.world_size() == 1 {
            return Ok(());
        }
        let mine = self.facts(model)?;
        let sent = serde_json::to_vec(&mine).map_err(|e| Error::internal(e.to_string()))?;
        let theirs = self.group.broadcast(&sent)?;
        let theirs: Map<String, Value> =
            serde_json::from_slice(&theirs).map_err(|e| Error::Network(format!("rank 0 said no JSON: {e}")))?;
        let differs = mine.iter().find(|(name, value)| theirs.get(*name) != Some(value));
        if let Some((name, value)) = differs {
            let rank = self.group.rank();
            let other = theirs.get(name).unwrap_or(&Value::Null);
            let error = Error::invalid(format!("{name} is {value} in rank {rank} and {other} in rank 0"));
            self.group.abort(&error.to_string());
            return Err(error);
        }
        self.group.barrier()
    }
}
