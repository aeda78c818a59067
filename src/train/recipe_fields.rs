//! Fields of Unsloth, PEFT, TRL and transformers that are not fields of a recipe: those that say the same in another way, and
//! those that change nothing here. What would change something, and does not exist here, is refused by name.

use super::preference::PreferenceLoss;
use crate::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Any value is fine.
const ANY: &[&str] = &["*"];
/// Only what switches it off.
const OFF: &[&str] = &[];

/// Field, the values that change nothing here, and why. Values that switch something off (`null`, `false`, 0, an empty text, list
/// or map) are always accepted, without a note.
const FOREIGN: &[(&str, &[&str], &str)] = &[
    // Unsloth's from_pretrained and get_peft_model
    ("dtype", ANY, "--dtype decides"),
    ("torch_dtype", ANY, "--dtype decides"),
    ("token", ANY, "`runtime pull` fetches models, with the token of its environment"),
    ("device_map", ANY, "--backend and --device decide"),
    ("rope_scaling", OFF, "the model's configuration decides"),
    ("fix_tokenizer", ANY, "the tokenizer is read as it is"),
    ("resize_model_vocab", OFF, "the vocabulary cannot grow"),
    ("revision", &["main"], "`runtime pull` fetches a revision; name the folder"),
    ("use_exact_model_name", ANY, "names are taken as they are"),
    ("offload_embedding", ANY, "it is an option of the command line, --offload-embedding"),
    ("float32_mixed_precision", ANY, "adapters are f32"),
    ("fast_inference", ANY, "samples come from the same engine"),
    ("gpu_memory_utilization", ANY, "memory is taken as a run needs it"),
    ("float8_kv_cache", ANY, "training has no key/value cache"),
    ("max_lora_rank", ANY, "`rank` decides"),
    ("disable_log_stats", ANY, "there are no such logs"),
    ("qat_scheme", OFF, "quantisation-aware training is not built"),
    ("load_in_fp8", OFF, "use load_in_4bit, or weight_type with q4_0, q4_k, q5_0, q6_k or q8_0"),
    ("load_in_8bit", OFF, "use weight_type with q8_0"),
    ("load_in_16bit", ANY, "the model's file decides"),
    ("unsloth_tiled_mlp", ANY, "it is a matter of memory alone"),
    ("temporary_location", ANY, "nothing is written there"),
    ("layers_to_transform", OFF, "all layers get adapters; target_modules chooses projections"),
    ("layers_pattern", OFF, "all layers get adapters; target_modules chooses projections"),
    ("target_parameters", OFF, "adapters are for projections; use target_modules"),
    ("trust_remote_code", ANY, "no model brings code"),
    ("attn_implementation", ANY, "there is one attention, exact and of any length"),
    // PEFT's LoraConfig
    ("peft_type", &["LORA"], "that is what is trained"),
    ("lora_task_type", &["CAUSAL_LM"], "that is what is trained"),
    ("use_peft", ANY, "adapters are trained"),
    ("peft_version", ANY, "it says who wrote the file"),
    ("auto_mapping", OFF, "modules have PEFT's names"),
    ("inference_mode", ANY, "it is about loading"),
    ("exclude_modules", OFF, "name the others in target_modules"),
    ("fan_in_fan_out", OFF, "weights are [outputs, inputs]"),
    ("rank_pattern", OFF, "all modules have one rank"),
    ("alpha_pattern", OFF, "all modules have one alpha"),
    ("lora_bias", OFF, "biases are not trained"),
    ("megatron_config", OFF, "Megatron is not used"),
    ("megatron_core", ANY, "Megatron is not used"),
    ("trainable_token_indices", OFF, "the embedding is not trained"),
    ("ensure_weight_tying", OFF, "whole modules are not tied anew"),
    ("alora_invocation_tokens", OFF, "activated LoRA is not built"),
    ("use_qalora", OFF, "QA-LoRA is not built"),
    ("qalora_group_size", ANY, "QA-LoRA is not built"),
    ("use_bdlora", OFF, "BD-LoRA is not built"),
    ("layer_replication", OFF, "layers cannot be repeated"),
    ("runtime_config", ANY, "it is about PEFT's own offload"),
    ("eva_config", OFF, "adapters start as init_lora_weights = true"),
    ("corda_config", OFF, "adapters start as init_lora_weights = true"),
    ("lora_ga_config", OFF, "adapters start as init_lora_weights = true"),
    ("velora_config", OFF, "VeLoRA is not built"),
    ("monteclora_config", OFF, "MonteCLoRA is not built"),
    ("arrow_config", OFF, "Arrow is not built"),
    ("kasa_config", OFF, "KaSA is not built"),
    // transformers' BitsAndBytesConfig
    ("bnb_4bit_quant_type", &["nf4"], "4 bits are NF4"),
    ("bnb_4bit_use_double_quant", ANY, "NF4 is made with double quantisation"),
    ("use_bnb_nested_quant", ANY, "NF4 is made with double quantisation"),
    ("bnb_4bit_compute_dtype", ANY, "--dtype decides"),
    ("bnb_4bit_quant_storage", ANY, "it is about PyTorch's own storage"),
    // TRL's SFTConfig
    ("model_init_kwargs", OFF, "use --dtype, --backend and weight_type"),
    ("chat_template_path", OFF, "the model's own template is used"),
    ("dataset_kwargs", OFF, "rows are read as docs/cli.md says"),
    ("dataset_batch_size", ANY, "all cores tokenise"),
    ("num_of_sequences", ANY, "it is about TRL's own streaming"),
    ("chars_per_token", ANY, "it is about TRL's own streaming"),
    ("shuffle_dataset", ANY, "rows are shuffled in each epoch anyway, unless `shuffle` is false"),
    ("eos_token", OFF, "the model's own token ends a row"),
    ("pad_token", ANY, "batches have no padding"),
    ("padding_value", ANY, "batches have no padding"),
    ("label_pad_token_id", ANY, "batches have no padding"),
    ("pad_to_multiple_of", ANY, "batches have no padding"),
    ("truncation_mode", &["keep_start"], "rows are cut at their end"),
    ("packing_strategy", &["bfd"], "whole rows are packed, and do not see each other"),
    ("eval_packing", ANY, "the loss is a mean over tokens either way"),
    ("padding_free", ANY, "batches have no padding"),
    ("router_aux_loss_coef", OFF, "there are no mixtures of experts"),
    ("use_liger_kernel", ANY, "kernels are fused, and logits never whole, always"),
    ("liger_kernel_config", ANY, "kernels are fused, and logits never whole, always"),
    ("dataset_train_split", &["train"], "a file has one split"),
    ("dataset_test_split", &["test"], "`eval_data` names another file"),
    ("dataset_config", OFF, "`data` names files"),
    ("dataset_streaming", ANY, "rows lie on disk where they are many"),
    ("ignore_bias_buffers", ANY, "it is about PyTorch's own distribution"),
    // TRL's DPOConfig and ORPOConfig
    ("precompute_ref_log_probs", ANY, "what the reference says of a row is computed once, always"),
    ("precompute_ref_batch_size", ANY, "what the reference says of a row is computed once, always"),
    ("max_prompt_length", ANY, "rows are cut at max_length alone"),
    ("max_completion_length", ANY, "rows are cut at max_length alone"),
    ("ld_alpha", OFF, "LD-DPO is not built"),
    ("f_divergence_type", &["reverse_kl"], "there is no other"),
    ("f_alpha_divergence_coef", ANY, "there is no alpha divergence"),
    ("use_weighting", OFF, "WPO is not built"),
    ("discopop_tau", ANY, "it is discopop's, which is not built"),
    ("reference_free", OFF, "use preference = \"orpo\" for a loss without a reference"),
    ("force_use_ref_model", OFF, "the reference is the model without its adapter"),
    ("model_adapter_name", ANY, "there is one adapter"),
    ("ref_adapter_name", OFF, "the reference is the model without its adapter"),
    ("sync_ref_model", OFF, "the reference is the model without its adapter"),
    ("ref_model_mixup_alpha", ANY, "the reference does not move"),
    ("ref_model_sync_steps", ANY, "the reference does not move"),
    ("generate_during_eval", OFF, "use sample_prompts and sample_steps"),
    ("is_encoder_decoder", OFF, "models are decoders"),
    // transformers' TrainingArguments
    ("bf16", ANY, "--dtype decides (CUDA computes in bf16 unless it says otherwise)"),
    ("fp16", ANY, "--dtype decides (CUDA computes in bf16 unless it says otherwise)"),
    ("bf16_full_eval", ANY, "--dtype decides"),
    ("fp16_full_eval", ANY, "--dtype decides"),
    ("tf32", ANY, "products in f32 are f32"),
    ("optim_args", OFF, "use adam_beta1, adam_beta2, adam_epsilon and momentum"),
    ("optim_target_modules", OFF, "the optimizer has all of the adapter"),
    ("average_tokens_across_devices", ANY, "the loss is a mean over the counted tokens of a step, always"),
    ("gradient_checkpointing_kwargs", ANY, "`recompute` computes every layer again"),
    ("activation_checkpointing_kwargs", ANY, "`recompute` computes every layer again"),
    ("torch_compile", ANY, "steps are recorded once and replayed, always"),
    ("torch_compile_backend", ANY, "steps are recorded once and replayed, always"),
    ("torch_compile_mode", ANY, "steps are recorded once and replayed, always"),
    ("use_cache", ANY, "training has no key/value cache"),
    ("torch_empty_cache_steps", ANY, "memory is planned once"),
    ("auto_find_batch_size", OFF, "use a smaller batch_size, recompute, or both"),
    ("logging_first_step", ANY, "every step is logged"),
    ("logging_nan_inf_filter", ANY, "a loss that is not finite ends the run"),
    ("log_on_each_node", ANY, "one process logs"),
    ("log_level", ANY, "there are no levels"),
    ("log_level_replica", ANY, "there are no levels"),
    ("include_num_input_tokens_seen", ANY, "the log has the tokens of each step"),
    ("include_tokens_per_second", ANY, "the log has them"),
    ("disable_tqdm", ANY, "progress is shown on a terminal"),
    ("run_name", ANY, "`tensorboard` names the folder"),
    ("project", ANY, "nothing is sent anywhere"),
    ("trackio_space_id", ANY, "nothing is sent anywhere"),
    ("trackio_bucket_id", ANY, "nothing is sent anywhere"),
    ("trackio_static_space_id", ANY, "nothing is sent anywhere"),
    ("eval_delay", OFF, "use eval_steps"),
    ("eval_on_start", OFF, "use eval_steps"),
    ("per_device_eval_batch_size", ANY, "evaluations take batches of the training's size; the loss is the same"),
    ("eval_accumulation_steps", ANY, "the loss alone is kept"),
    ("eval_do_concat_batches", ANY, "the loss alone is kept"),
    ("eval_use_gather_object", ANY, "the loss alone is kept"),
    ("prediction_loss_only", ANY, "the loss alone is kept"),
    ("include_for_metrics", OFF, "the loss is the only measure"),
    ("batch_eval_metrics", OFF, "the loss is the only measure"),
    ("save_only_model", ANY, "checkpoints hold all that a run goes on from"),
    ("save_safetensors", ANY, "files are safetensors, always"),
    ("save_on_each_node", ANY, "one process writes"),
    ("enable_jit_checkpoint", OFF, "use save_steps; Ctrl-C saves, too"),
    ("push_to_hub", OFF, "nothing is sent anywhere"),
    ("hub_token", ANY, "nothing is sent anywhere"),
    ("hub_private_repo", ANY, "nothing is sent anywhere"),
    ("hub_model_id", ANY, "nothing is sent anywhere"),
    ("hub_strategy", ANY, "nothing is sent anywhere"),
    ("hub_always_push", ANY, "nothing is sent anywhere"),
    ("hub_revision", ANY, "nothing is sent anywhere"),
    ("ignore_data_skip", OFF, "a run goes on with the data that it has not seen"),
    ("restore_callback_states_from_checkpoint", ANY, "a checkpoint brings everything back"),
    ("full_determinism", ANY, "a step gives the same bits every time, always"),
    ("data_seed", OFF, "`seed` decides the order of rows, too"),
    ("use_cpu", OFF, "use --backend cpu"),
    ("no_cuda", OFF, "use --backend cpu"),
    ("accelerator_config", OFF, "accelerate is not used"),
    ("parallelism_config", OFF, "accelerate is not used"),
    ("fsdp", OFF, "weights are not split"),
    ("fsdp_config", OFF, "weights are not split"),
    ("deepspeed", OFF, "DeepSpeed is not used"),
    ("ddp_find_unused_parameters", ANY, "it is about PyTorch's own distribution"),
    ("ddp_bucket_cap_mb", ANY, "it is about PyTorch's own distribution"),
    ("ddp_broadcast_buffers", ANY, "it is about PyTorch's own distribution"),
    ("ddp_static_graph", ANY, "it is about PyTorch's own distribution"),
    ("local_rank", ANY, "the environment decides"),
    ("dataloader_drop_last", OFF, "the last rows of an epoch are trained on, too"),
    ("dataloader_pin_memory", ANY, "rows are read where they are used"),
    ("dataloader_persistent_workers", ANY, "rows are read where they are used"),
    ("dataloader_prefetch_factor", ANY, "rows are read where they are used"),
    ("dataloader_multiprocessing_context", ANY, "rows are read where they are used"),
    ("dataloader_in_order", ANY, "rows come in one order"),
    ("label_names", ANY, "the next tokens are the labels"),
    ("group_by_length", OFF, "use packing, or shuffle"),
    ("length_column_name", ANY, "lengths are counted"),
    ("skip_memory_metrics", ANY, "memory is shown when a run starts"),
    ("debug", OFF, "it is PyTorch's own"),
    ("do_train", ANY, "that is what is done"),
    ("do_eval", ANY, "`eval_data` decides"),
    ("do_predict", OFF, "use `runtime generate`"),
];

/// A field as others write it: names in small letters, `_` for `-`.
fn normalised(name: &str) -> String {
    name.to_ascii_lowercase().replace('-', "_")
}

/// Whether a value switches something off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

/// What a message says of a value.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The fields with what others say in several of them put into ours, and without those that change nothing here, of which a
/// note is taken.
///
/// # Errors
/// [`Error::Unsupported`] for a field that would change something, naming it and what is accepted; [`Error::Invalid`] for fields
/// that contradict each other.
pub(super) fn translated(fields: Map<String, Value>, notes: &mut Vec<String>) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    for (given, value) in fields {
        let name = normalised(&given);
        if value.is_null() {
            continue;
        }
        match FOREIGN.iter().find(|(other, ..)| *other == name) {
            Some((_, allowed, why)) => notes.extend(without_effect(&given, &value, allowed, why)?),
            None => drop(out.insert(name, value)),
        }
    }
    quantised(&mut out);
    counted_tokens(&mut out)?;
    steps(&mut out, notes);
    order(&mut out)?;
    preference(&mut out, notes)?;
    Ok(out)
}

fn without_effect(given: &str, value: &Value, allowed: &[&str], why: &str) -> Result<Option<String>> {
    let text = shown(value);
    if is_off(value) {
        return Ok(None);
    }
    if allowed == ANY || allowed.contains(&text.as_str()) {
        return Ok(Some(format!("{given} has no effect: {why}")));
    }
    let accepted = if allowed.is_empty() { "null or false".to_owned() } else { allowed.join(", ") };
    Err(Error::unsupported(format!("'{given}' is {text}; accepted: {accepted} ({why})")))
}

/// `load_in_4bit` is bitsandbytes' NF4.
fn quantised(fields: &mut Map<String, Value>) {
    if fields.remove("load_in_4bit").is_some_and(|value| value == json!(true)) {
        fields.entry("weight_type").or_insert_with(|| json!("nf4"));
    }
}

/// Several fields say which tokens count: any that asks for answers alone wins, as in TRL, where the others are off by default.
fn counted_tokens(fields: &mut Map<String, Value>) -> Result<()> {
    let names = [
        ("assistant_only_loss", true),
        ("completion_only_loss", true),
        ("train_on_responses_only", true),
        ("train_on_inputs", false),
    ];
    let mut loss = None;
    for (name, answers) in names {
        let Some(value) = fields.remove(name) else { continue };
        let Value::Bool(on) = value else {
            return Err(Error::invalid(format!("{name} is {value}, expected true or false")));
        };
        loss = Some(if on == answers || loss == Some("assistant") { "assistant" } else { "all" });
    }
    if let Some(loss) = loss {
        match fields.insert("loss".into(), json!(loss)) {
            Some(before) if before != json!(loss) => {
                return Err(Error::invalid(format!(
                    "loss is {before}, but assistant_only_loss and its like ask for \"{loss}\""
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// How long a run is and what happens on the way, where transformers has two fields for one thing.
fn steps(fields: &mut Map<String, Value>, notes: &mut Vec<String>) {
    if fields.get("max_steps").and_then(Value::as_f64).is_some_and(|steps| steps > 0.0)
        && fields.remove("num_train_epochs").is_some()
    {
        notes.push("num_train_epochs has no effect: max_steps is given".into());
    }
    for name in ["max_steps", "warmup_steps", "save_steps", "eval_steps", "logging_steps"] {
        if let Some(value) = fields.get_mut(name)
            && let Some(whole) = value.as_f64().filter(|number| *number >= 1.0 && number.fract() == 0.0)
        {
            *value = json!(whole as u64);
        }
    }
    // transformers 5: less than 1 is a share of all steps.
    if let Some(share) = fields.get("warmup_steps").and_then(Value::as_f64).filter(|share| 0.0 < *share && *share < 1.0)
    {
        fields.remove("warmup_steps");
        fields.insert("warmup_ratio".into(), json!(share));
    }
    for (strategy, every) in
        [("save_strategy", "save_steps"), ("eval_strategy", "eval_steps"), ("evaluation_strategy", "eval_steps")]
    {
        if fields.get(strategy).is_some_and(|value| value != "steps") {
            fields.remove(every);
        }
    }
}

/// `train_sampling_strategy` of transformers.
fn order(fields: &mut Map<String, Value>) -> Result<()> {
    let Some(strategy) = fields.remove("train_sampling_strategy") else { return Ok(()) };
    let shuffle = match strategy.as_str() {
        Some("random") => true,
        Some("sequential") => false,
        _ => {
            let text = shown(&strategy);
            return Err(Error::unsupported(format!(
                "'train_sampling_strategy' is {text}; accepted: random, sequential"
            )));
        }
    };
    fields.entry("shuffle").or_insert(json!(shuffle));
    Ok(())
}

/// TRL's fields of preference tuning, which are our `preference`.
fn preference(fields: &mut Map<String, Value>, notes: &mut Vec<String>) -> Result<()> {
    let mut inner = match (fields.remove("preference"), fields.remove("rl")) {
        (Some(Value::Object(inner)), _) => Some(inner),
        (Some(name), _) | (None, Some(name)) => Some(named(&shown(&name))?),
        (None, None) => None,
    };
    if let Some(types) = fields.remove("loss_type") {
        loss_type(&types, fields.remove("loss_weights"), &mut inner)?;
    }
    let dropout_off = fields.remove("disable_dropout").is_some_and(|value| value == json!(true));
    let Some(mut inner) = inner else {
        if let Some(name) = ["beta", "rpo_alpha"].into_iter().find(|name| fields.contains_key(*name)) {
            return Err(Error::invalid(format!(
                "{name} belongs to preference tuning: say preference = \"dpo\" (or hinge, ipo, orpo)"
            )));
        }
        return Ok(());
    };
    if dropout_off
        && let Some(dropout) =
            ["dropout", "lora_dropout"].into_iter().filter_map(|name| fields.remove(name)).find(|value| !is_off(value))
    {
        notes.push(format!("dropout of {dropout} has no effect: disable_dropout is true"));
    }
    for name in ["beta", "rpo_alpha", "label_smoothing"] {
        if let Some(value) = fields.remove(name) {
            inner.entry(name).or_insert(value);
        }
    }
    fields.insert("preference".into(), Value::Object(inner));
    Ok(())
}

/// A preference loss by its name.
fn named(name: &str) -> Result<Map<String, Value>> {
    let loss: PreferenceLoss = name.parse()?;
    Ok(Map::from_iter([("loss".to_owned(), json!(loss))]))
}

/// TRL's `loss_type` with its weights: of SFT, or of DPO, where `sft` beside another is RPO's term.
fn loss_type(types: &Value, weights: Option<Value>, inner: &mut Option<Map<String, Value>>) -> Result<()> {
    let list: Vec<String> = match types {
        Value::Array(list) => list.iter().map(shown).collect(),
        one => vec![shown(one)],
    };
    let refused = || {
        Error::unsupported(format!(
            "'loss_type' is {}; accepted: nll, sigmoid, hinge, ipo, and one of the last three with sft",
            list.join(", ")
        ))
    };
    let (name, alpha) = match list.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["nll" | "chunked_nll"] if inner.is_none() => return Ok(()),
        [name @ ("sigmoid" | "hinge" | "ipo")] => (name, None),
        [name @ ("sigmoid" | "hinge" | "ipo"), "sft"] => (name, Some(1.0)),
        _ => return Err(refused()),
    };
    let weights: Vec<f64> = match &weights {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_f64).collect(),
        _ => vec![1.0; list.len()],
    };
    if weights.len() != list.len() || weights.first() != Some(&1.0) {
        return Err(Error::unsupported(format!(
            "'loss_weights' is {weights:?}; accepted: a weight for each loss_type, of which the first is 1"
        )));
    }
    let given = named(name)?;
    let inner = inner.get_or_insert_default();
    match inner.get("loss") {
        Some(before) if *before != given["loss"] => {
            return Err(Error::invalid(format!("loss_type is {name}, but preference is {before}")));
        }
        _ => inner.extend(given),
    }
    if alpha.is_some() {
        inner.insert("rpo_alpha".into(), json!(weights[1]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::recipe_file::parse;
    use super::super::{LossOn, Optim};
    use super::*;
    use crate::tensor::DType;

    fn read(fields: Value) -> Result<(super::super::Recipe, Vec<String>)> {
        parse(fields.as_object().cloned().unwrap_or_default())
    }

    fn refused(fields: Value, part: &str) {
        let message = read(fields.clone()).map(drop).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains(part), "{fields}: '{message}' does not contain '{part}'");
    }

    /// What each class has by default (scripts/golden/recipe_fields.py) is accepted, field by field and all together.
    #[test]
    fn every_default_of_others_is_accepted() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sft/recipe_fields.json");
        let classes: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut count = 0;
        for (class, fields) in classes.as_object().unwrap() {
            let more = match class.as_str() {
                "DPOConfig" => json!({ "preference": "dpo" }),
                "ORPOConfig" => json!({ "preference": "orpo" }),
                _ => json!({}),
            };
            let fields = fields.as_object().unwrap();
            for (field, value) in fields {
                let mut one = more.as_object().cloned().unwrap();
                one.insert(field.clone(), value.clone());
                parse(one).map_err(|e| format!("{class}.{field} = {value}: {e}")).unwrap();
                count += 1;
            }
            let mut all = fields.clone();
            all.extend(more.as_object().cloned().unwrap());
            let (recipe, _) = parse(all).map_err(|e| format!("{class}: {e}")).unwrap();
            recipe.validate().map_err(|e| format!("{class}: {e}")).unwrap();
        }
        assert!(count > 300, "{count}");
    }

    /// Every row of the table: what it accepts it accepts; anything else is an error with the field's name.
    #[test]
    fn every_foreign_field_works_or_says_why_not() {
        for (name, allowed, why) in FOREIGN {
            let with = |value: Value| read(json!({ *name: value }));
            assert!(with(json!(false)).is_ok_and(|(_, notes)| notes.is_empty()), "{name}");
            if *allowed == ANY {
                let (_, notes) = with(json!("something")).unwrap();
                assert_eq!(notes, [format!("{name} has no effect: {why}")]);
                continue;
            }
            for value in *allowed {
                assert_eq!(with(json!(value)).unwrap().1.len(), 1, "{name}");
            }
            refused(json!({ *name: "something" }), &format!("'{name}' is something; accepted: "));
            let ours = crate::train::Recipe::default();
            assert!(serde_json::to_value(ours).unwrap().get(name).is_none(), "{name} is a field of the recipe");
        }
    }

    #[test]
    fn the_same_in_other_words() {
        let ok = |fields: Value| read(fields.clone()).map_err(|e| format!("{fields}: {e}")).unwrap();
        assert_eq!(ok(json!({"load_in_4bit": true})).0.weight_type, Some(DType::NF4));
        assert_eq!(ok(json!({"load_in_4bit": false})).0.weight_type, None);
        assert_eq!(ok(json!({"completion_only_loss": true, "assistant_only_loss": false})).0.loss, LossOn::Assistant);
        assert_eq!(ok(json!({"train_on_inputs": true})).0.loss, LossOn::All);
        assert_eq!(ok(json!({"warmup_steps": 0.1})).0.warmup_ratio, Some(0.1));
        assert_eq!(ok(json!({"warmup_steps": 3.0})).0.warmup_steps, 3);
        assert_eq!(ok(json!({"save_strategy": "no", "save_steps": 500})).0.save_steps, None);
        assert!(ok(json!({"activation_checkpointing": true})).0.recompute);
        assert!(ok(json!({"use_gradient_checkpointing": "unsloth"})).0.recompute);
        assert!(!ok(json!({"train_sampling_strategy": "sequential"})).0.shuffle);
        assert_eq!(ok(json!({"optim": "paged_lion_8bit"})).0.optim, Optim::PagedLion8bit);
        assert_eq!(ok(json!({"use_dora": true})).0.use_dora, Some(true));
        let (recipe, notes) = ok(json!({"max_steps": 60, "num_train_epochs": 3}));
        assert_eq!((recipe.max_steps, recipe.epochs, notes.len()), (Some(60), None, 1));
        for one in [
            json!({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.2}),
            json!({"rl": "dpo", "beta": 0.2, "rpo_alpha": 0.5}),
        ] {
            let preference = ok(one).0.preference.unwrap();
            assert_eq!((preference.loss, preference.beta, preference.rpo_alpha), (PreferenceLoss::Sigmoid, 0.2, 0.5));
        }
        let (recipe, _) =
            ok(json!({"preference": "dpo", "label_smoothing": 0.1, "lora_dropout": 0.1, "disable_dropout": true}));
        assert_eq!(
            (recipe.preference.unwrap().label_smoothing, recipe.label_smoothing, recipe.dropout),
            (0.1, 0.0, 0.0)
        );
        assert_eq!(ok(json!({"preference": "orpo"})).0.preference.unwrap().loss, PreferenceLoss::Orpo);
        refused(json!({"beta": 0.1}), "beta belongs to preference tuning");
        refused(json!({"loss_type": "dft"}), "'loss_type' is dft; accepted: nll, sigmoid");
        refused(json!({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 1.0]}), "'loss_weights'");
        refused(json!({"loss_type": "hinge", "preference": "dpo"}), "loss_type is hinge, but preference is");
        refused(json!({"assistant_only_loss": "yes"}), "assistant_only_loss is \"yes\", expected true or false");
        refused(json!({"loss": "all", "assistant_only_loss": true}), "loss is \"all\"");
        refused(json!({"weight_type": "q9"}), "weight_type");
    }
}
