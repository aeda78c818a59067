//! Recipes in files: TOML, YAML or JSON, under our field names or those that Unsloth, TRL and PEFT use.

use super::recipe::Recipe;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Field, and what others call it.
pub const NAMES: &[(&str, &[&str])] = &[
    ("model", &["model_name", "model_name_or_path", "base_model", "base_model_name_or_path"]),
    ("data", &["dataset", "datasets", "dataset_name", "train_file", "data_files", "train_dataset"]),
    ("output", &["output_dir"]),
    ("rank", &["r", "lora_r", "lora_rank"]),
    ("alpha", &["lora_alpha"]),
    ("dropout", &["lora_dropout"]),
    ("use_rslora", &["rslora"]),
    ("use_dora", &["dora", "peft_use_dora"]),
    ("target_modules", &["lora_target_modules", "lora_target"]),
    ("full_finetuning", &["full_finetune"]),
    ("modules_to_save", &["lora_modules_to_save", "additional_target"]),
    ("neftune_noise_alpha", &["neftune_alpha"]),
    ("batch_size", &["per_device_train_batch_size", "micro_batch_size", "train_batch_size"]),
    ("grad_accum", &["gradient_accumulation_steps"]),
    ("max_length", &["max_seq_length", "max_seq_len", "sequence_len", "cutoff_len"]),
    ("lr", &["learning_rate"]),
    ("schedule", &["lr_scheduler_type", "lr_scheduler"]),
    ("epochs", &["num_train_epochs", "num_epochs"]),
    ("optim", &["optimizer"]),
    ("seed", &["random_state"]),
    ("label_smoothing", &["label_smoothing_factor"]),
    ("packing", &["sample_packing"]),
    ("recompute", &["gradient_checkpointing", "use_gradient_checkpointing", "activation_checkpointing"]),
    ("resume", &["resume_from_checkpoint"]),
    ("init_adapter", &["adapter_name_or_path"]),
    ("tensorboard", &["logging_dir"]),
    ("eval_data", &["eval_dataset", "eval_file", "test_datasets"]),
];

/// Fields of others that change nothing here, the values that are then true, and why.
const WITHOUT_EFFECT: &[(&str, &[&str], &str)] = &[
    ("bias", &["none"], "biases are not trained"),
    ("task_type", &["CAUSAL_LM"], "that is what is trained"),
    ("loftq_config", &["null", "{}"], "LoftQ is not built"),
    ("init_lora_weights", &["true"], "that is how an adapter starts"),
    ("logging_steps", &["*"], "every step is logged"),
    ("logging_strategy", &["steps"], "every step is logged"),
    ("report_to", &["none", "tensorboard", "[]", "[\"none\"]", "[\"tensorboard\"]"], "`tensorboard` names the folder"),
    ("save_strategy", &["no", "steps"], "`save_steps` decides"),
    ("eval_strategy", &["no", "steps", "epoch"], "`eval_data` and `eval_steps` decide"),
    ("evaluation_strategy", &["no", "steps", "epoch"], "`eval_data` and `eval_steps` decide"),
    ("metric_for_best_model", &["eval_loss", "loss"], "the loss decides"),
    ("greater_is_better", &["false"], "the loss decides"),
    ("dataset_text_field", &["text"], "texts are read from 'text'"),
    ("dataset_num_proc", &["*"], "all cores tokenise"),
    ("dataloader_num_workers", &["*"], "rows are read where they are used"),
    ("remove_unused_columns", &["*"], "other columns are not read"),
];

/// Reads a recipe; its name's end says what it is (`.toml`, `.yaml`, `.yml`, `.json`). Besides, notes on fields that have
/// no effect here.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] with the file and the field (or the line) that is wrong.
pub fn read(path: &Path) -> Result<(Recipe, Vec<String>)> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let located = |e: String| Error::invalid(format!("{}: {}", path.display(), e.trim_end().replace('\n', " ")));
    let value: Value = match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => toml::from_str(&text).map_err(|e| located(e.to_string()))?,
        Some("yaml" | "yml") => serde_saphyr::from_str(&text).map_err(|e| located(e.to_string()))?,
        Some("json") => serde_json::from_str(&text).map_err(|e| located(e.to_string()))?,
        _ => return Err(located("a recipe's name ends in .toml, .yaml, .yml or .json".into())),
    };
    let Value::Object(fields) = value else { return Err(located("expected fields and their values".into())) };
    parse(fields).map_err(|e| located(e.to_string()))
}

/// Fields under anyone's names as a recipe, with notes on those without effect.
///
/// # Errors
/// [`Error::Invalid`] with the field that is wrong.
pub fn parse(fields: Map<String, Value>) -> Result<(Recipe, Vec<String>)> {
    let (mut out, mut notes) = (Map::new(), Vec::new());
    let fields = super::recipe_fields::translated(fields, &mut notes)?;
    let mut add = |given: &str, field: &str, value: Value| match out.insert(field.to_owned(), value.clone()) {
        Some(before) if before != value => {
            Err(Error::invalid(format!("'{given}' is {value}, but {field} has been given as {before}")))
        }
        _ => Ok(()),
    };
    for (given, value) in fields {
        let name = given.to_ascii_lowercase().replace('-', "_");
        if value.is_null() {
            continue;
        }
        if let Some((_, allowed, why)) = WITHOUT_EFFECT.iter().find(|(other, ..)| *other == name) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !allowed.contains(&"*") && !allowed.contains(&text.as_str()) {
                let accepted = allowed.join(", ");
                return Err(Error::unsupported(format!("'{given}' is {text}; accepted: {accepted} ({why})")));
            }
            notes.push(format!("{given} has no effect: {why}"));
            continue;
        }
        match (name.as_str(), &value) {
            ("lr_scheduler_kwargs", Value::Object(more)) => {
                more.iter().try_for_each(|(field, value)| add(field, field, value.clone()))?;
                continue;
            }
            // LLaMA-Factory's.
            ("finetuning_type", Value::String(kind)) => {
                let full = match kind.as_str() {
                    "full" => true,
                    "lora" => false,
                    other => {
                        return Err(Error::unsupported(format!("'{given}' is {other}: there are lora and full")));
                    }
                };
                add(&given, "full_finetuning", json!(full))?;
                continue;
            }
            // LLaMA-Factory's lists are texts with commas.
            ("additional_target" | "lora_target", Value::String(list)) if list.contains(',') => {
                let field = if name == "lora_target" { "target_modules" } else { "modules_to_save" };
                let names: Vec<&str> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
                add(&given, field, json!(names))?;
                continue;
            }
            _ => {}
        }
        let known = NAMES.iter().find(|(field, names)| *field == name || names.contains(&name.as_str()));
        let field = known.map_or(name.as_str(), |(field, _)| field);
        let value = match (field, value) {
            // Unsloth's own way of checkpointing.
            ("recompute", Value::String(text)) if text == "unsloth" => {
                add(&given, "activation_offloading", json!(true))?;
                json!(true)
            }
            ("resume", Value::Bool(true)) => json!("auto"),
            ("resume", Value::Bool(false)) => continue,
            // -1 stands for "not limited" in transformers.
            ("max_steps", value) if value == json!(-1) => continue,
            // transformers' settings say 0 where there is no ratio, no smoothing, no noise.
            ("warmup_ratio" | "neftune_noise_alpha", value) if value.as_f64() == Some(0.0) => continue,
            (_, value) => value,
        };
        add(&given, field, value)?;
    }
    let recipe = Recipe::deserialize_named(Value::Object(out))?;
    Ok((recipe, notes))
}

impl Recipe {
    /// From JSON under our names; messages name the field.
    fn deserialize_named(value: Value) -> Result<Self> {
        // One field at a time first: serde's message does not say in which field a value is wrong.
        for (field, value) in value.as_object().into_iter().flatten() {
            serde_json::from_value::<Self>(json!({ field.as_str(): value })).map_err(|e| {
                let message = e.to_string();
                match message.starts_with("unknown field") {
                    true => Error::invalid(message),
                    false => Error::invalid(format!("{field}: {message}")),
                }
            })?;
        }
        serde_json::from_value(value).map_err(|e| Error::invalid(e.to_string()))
    }

    /// This recipe with other values for some fields, under our names.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field that is wrong.
    pub fn with(&self, changes: Map<String, Value>) -> Result<Self> {
        let mut all = serde_json::to_value(self).map_err(|e| Error::internal(e.to_string()))?;
        if let Some(all) = all.as_object_mut() {
            all.extend(changes);
        }
        Self::deserialize_named(all)
    }

    /// The whole recipe as TOML, which [`read`] takes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that TOML does not have.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::invalid(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{LossOn, Optim, Schedule};

    fn file(name: &str, text: &str) -> Result<(Recipe, Vec<String>)> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("", e))?;
        let path = folder.path().join(name);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
        read(&path)
    }

    fn refused(text: &str, part: &str) {
        let message = file("r.yaml", text).map(drop).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains("r.yaml: ") && message.contains(part), "{message}");
    }

    #[test]
    fn unsloth_s_recipe_in_toml_and_yaml() {
        let toml = "model_name = \"unsloth/Qwen3-8B\"\nmax_seq_length = 1024\nr = 16\nlora_alpha = 32\nbias = \"none\"\n\
            target_modules = [\"q_proj\", \"v_proj\"]\nuse_gradient_checkpointing = \"unsloth\"\nrandom_state = 3407\n\
            use_rslora = false\nper_device_train_batch_size = 2\ngradient_accumulation_steps = 4\nwarmup_steps = 5\n\
            max_steps = 50\nlearning_rate = 2e-4\nlogging_steps = 1\noptim = \"adamw_8bit\"\nweight_decay = 0.01\n\
            lr_scheduler_type = \"cosine\"\nseed = 3407\noutput_dir = \"outputs\"\nreport_to = \"none\"\n";
        let yaml = toml.replace(" = ", ": ");
        let (recipe, notes) = file("r.toml", toml).unwrap();
        assert_eq!(file("r.yaml", &yaml).unwrap().0, recipe);
        assert_eq!(
            (recipe.rank, recipe.alpha, recipe.max_length, recipe.recompute, recipe.activation_offloading),
            (Some(16), Some(32.0), 1024, true, true)
        );
        assert_eq!((recipe.optim, recipe.schedule, recipe.lr), (Optim::AdamW8bit, Schedule::Cosine, 2e-4));
        assert_eq!((recipe.batch_size, recipe.grad_accum, recipe.max_steps), (2, 4, Some(50)));
        assert_eq!(recipe.model.as_deref(), Some("unsloth/Qwen3-8B"));
        assert_eq!(notes.len(), 3, "{notes:?}");
        // What it prints it also reads.
        assert_eq!(file("r.toml", &recipe.to_toml().unwrap()).unwrap().0, recipe);
    }

    #[test]
    fn other_ways_to_say_it() {
        let (recipe, _) = file(
            "r.yml",
            "assistant_only_loss: false\nresume_from_checkpoint: true\nmax_steps: -1\n\
            lr_scheduler_kwargs: {num_cycles: 3}\ndata: [a.jsonl, {path: b.parquet, weight: 0.5}]\ndropout: 0.1\n",
        )
        .unwrap();
        assert_eq!((recipe.loss, recipe.max_steps, recipe.num_cycles), (LossOn::All, None, Some(3.0)));
        assert_eq!(recipe.resume, Some("auto".into()));
        assert_eq!(recipe.data[1].weight, 0.5);
        let again = file("r.toml", &recipe.to_toml().unwrap()).unwrap().0;
        assert_eq!(again, recipe);
        let changed = recipe.with(json!({"lr": 1e-3}).as_object().cloned().unwrap_or_default()).unwrap();
        assert_eq!((changed.lr, changed.dropout), (1e-3, 0.1));
        let (recipe, _) = file("r.yaml", "finetuning_type: full\nlearning_rate: 1e-5\n").unwrap();
        assert!(recipe.full_finetuning);
        let (recipe, _) = file("r.yaml", "finetuning_type: lora\nadditional_target: embed_tokens, lm_head\n").unwrap();
        assert_eq!((recipe.full_finetuning, recipe.modules_to_save.len()), (false, 2));
    }

    #[test]
    fn wrong_fields_are_named() {
        refused("lerning_rate: 1", "unknown field `lerning_rate`");
        refused("lr: fast", "lr: invalid type: string \"fast\"");
        refused("lr: 1\nlearning_rate: 2", "'learning_rate' is 2, but lr has been given as 1");
        refused("finetuning_type: freeze", "there are lora and full");
        refused("full_finetuning: true\nfinetuning_type: lora", "full_finetuning has been given as");
        refused("load_in_8bit: true", "'load_in_8bit' is true; accepted: null or false (use weight_type with q8_0)");
        refused("optim: adafactor", "optim: unsupported: optim 'adafactor'");
        refused("- 1", "expected fields");
        refused("lr: [", "");
        let message = file("recipe.txt", "").map(drop).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains(".toml, .yaml, .yml or .json"), "{message}");
    }
}
