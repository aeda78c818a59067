//! PEFT's adapter_config.json for LoRA: reading, writing, and which modules it selects.
//!
//! Source: `peft/tuners/lora/config.py` and `peft/tuners/tuners_utils.py` of PEFT 0.21.

use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::model::keys::Keys;
use crate::model::weights::{LINEARS, linear_modules};
use fancy_regex::Regex;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The PEFT release whose files are written.
const PEFT_VERSION: &str = "0.21.2";

/// Which modules get an adapter.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetModules {
    /// A module whose path is one of these, or ends in `.` and one of these.
    List(Vec<String>),
    /// A Python regular expression that matches the whole path.
    Regex(String),
    /// Every linear module of the layers.
    AllLinear,
}

/// The parts of adapter_config.json that matter here.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input while training.
    pub lora_dropout: f64,
    /// Scale alpha/√r instead of alpha/r.
    pub use_rslora: bool,
    /// DoRA: rows have lengths that are learned.
    pub use_dora: bool,
    /// Which modules.
    pub target_modules: TargetModules,
    /// Rank of modules whose path matches a pattern.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alpha of modules whose path matches a pattern.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Name of the base model.
    pub base_model: Option<String>,
    /// Modules whose weights are trained and saved whole: those whose path ends in one of these.
    pub modules_to_save: Vec<String>,
}

/// Features that change the result and are not implemented. Absent, null, false, zero, empty, and the
/// stated value are fine.
const REFUSED: [(&str, &str); 21] = [
    ("bias", "none"),
    ("lora_bias", ""),
    ("fan_in_fan_out", ""),
    ("ensure_weight_tying", ""),
    ("layer_replication", ""),
    ("layers_to_transform", ""),
    ("layers_pattern", ""),
    ("exclude_modules", ""),
    ("target_parameters", ""),
    ("trainable_token_indices", ""),
    ("alora_invocation_tokens", ""),
    ("arrow_config", ""),
    ("use_qalora", ""),
    ("use_bdlora", ""),
    ("velora_config", ""),
    ("kasa_config", ""),
    ("monteclora_config", ""),
    ("megatron_config", ""),
    ("loftq_config", ""),
    ("corda_config", ""),
    ("auto_mapping", ""),
];

impl AdapterConfig {
    /// A plain LoRA configuration.
    pub fn new(r: usize, lora_alpha: f64, target_modules: TargetModules) -> Self {
        Self {
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            target_modules,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            base_model: None,
            modules_to_save: Vec::new(),
        }
    }

    /// Reads adapter_config.json; `file` appears in messages.
    ///
    /// # Errors
    /// [`Error::Format`] naming the key; [`Error::Unsupported`] naming a feature that is not implemented.
    pub fn from_json(file: &str, raw: &Value) -> Result<Self> {
        let keys = Keys::new(file, raw)?;
        match keys.str("peft_type")? {
            Some("LORA") => {}
            Some(other) => return Err(Error::unsupported(format!("{file}: peft_type '{other}'; supported is LORA"))),
            None => return Err(keys.error("peft_type", "missing, expected \"LORA\"")),
        }
        for (key, allowed) in REFUSED {
            if keys.get(key).is_some_and(|v| is_set(v, allowed)) {
                return Err(Error::unsupported(format!("{file}: {} is set", keys.place(key))));
            }
        }
        let target_modules = match keys.get("target_modules") {
            Some(Value::String(s)) if s == "all-linear" => TargetModules::AllLinear,
            Some(Value::String(s)) => TargetModules::Regex(s.clone()),
            Some(Value::Array(_)) => {
                let list = keys.strings("target_modules")?.unwrap_or_default();
                TargetModules::List(list.into_iter().map(str::to_owned).collect())
            }
            _ => return Err(keys.error("target_modules", "expected a list of names or a regular expression")),
        };
        let mut rank_pattern = BTreeMap::new();
        if let Some(patterns) = keys.object("rank_pattern")? {
            for (pattern, _) in patterns.iter() {
                rank_pattern.extend(patterns.size(pattern)?.map(|r| (pattern.clone(), r)));
            }
        }
        let mut alpha_pattern = BTreeMap::new();
        if let Some(patterns) = keys.object("alpha_pattern")? {
            for (pattern, _) in patterns.iter() {
                alpha_pattern.extend(patterns.number(pattern)?.map(|a| (pattern.clone(), a)));
            }
        }
        Ok(Self {
            r: keys.size("r")?.unwrap_or(8),
            lora_alpha: keys.number("lora_alpha")?.unwrap_or(8.0),
            lora_dropout: keys.number("lora_dropout")?.unwrap_or(0.0),
            use_rslora: keys.bool("use_rslora")?.unwrap_or(false),
            use_dora: keys.bool("use_dora")?.unwrap_or(false),
            target_modules,
            rank_pattern,
            alpha_pattern,
            base_model: keys.str("base_model_name_or_path")?.map(str::to_owned),
            modules_to_save: keys
                .strings("modules_to_save")?
                .unwrap_or_default()
                .into_iter()
                .map(str::to_owned)
                .collect(),
        })
    }

    /// The file as PEFT writes it, every field included.
    pub fn to_json(&self) -> Value {
        let mut all = Map::new();
        for key in [
            "alora_invocation_tokens",
            "arrow_config",
            "auto_mapping",
            "corda_config",
            "eva_config",
            "exclude_modules",
            "kasa_config",
            "layer_replication",
            "layers_pattern",
            "layers_to_transform",
            "lora_ga_config",
            "megatron_config",
            "monteclora_config",
            "revision",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "velora_config",
        ] {
            all.insert(key.into(), Value::Null);
        }
        for key in ["ensure_weight_tying", "fan_in_fan_out", "lora_bias", "use_qalora"] {
            all.insert(key.into(), Value::Bool(false));
        }
        let mut set = |key: &str, value: Value| drop(all.insert(key.into(), value));
        let saved = (!self.modules_to_save.is_empty()).then_some(&self.modules_to_save);
        set("modules_to_save", json!(saved));
        set("base_model_name_or_path", json!(self.base_model));
        set("bias", json!("none"));
        set("inference_mode", json!(true));
        set("init_lora_weights", json!(true));
        set("loftq_config", json!({}));
        set("megatron_core", json!("megatron.core"));
        set("peft_type", json!("LORA"));
        set("peft_version", json!(PEFT_VERSION));
        set("qalora_group_size", json!(16));
        set("task_type", json!("CAUSAL_LM"));
        set("r", json!(self.r));
        set("lora_alpha", whole(self.lora_alpha));
        set("lora_dropout", json!(self.lora_dropout));
        set("use_rslora", json!(self.use_rslora));
        set("use_dora", json!(self.use_dora));
        set("rank_pattern", json!(self.rank_pattern));
        let alphas: Map<_, _> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), whole(*v))).collect();
        set("alpha_pattern", Value::Object(alphas));
        set(
            "target_modules",
            match &self.target_modules {
                TargetModules::List(list) => {
                    let mut list = list.clone();
                    list.sort(); // PEFT keeps a set and sorts it when saving
                    json!(list)
                }
                TargetModules::Regex(pattern) => json!(pattern),
                TargetModules::AllLinear => json!("all-linear"),
            },
        );
        all.sort_keys();
        Value::Object(all)
    }

    /// Full paths of the modules that this configuration selects in a model, in layer order.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a pattern is malformed, or nothing is selected (listing what there is).
    pub fn targets(&self, model: &ModelConfig) -> Result<Vec<String>> {
        let regex = match &self.target_modules {
            TargetModules::Regex(pattern) => Some(compile(&format!("^(?:{pattern})$"), "target_modules")?),
            _ => None,
        };
        let mut out = vec![];
        let head = "lm_head".to_owned();
        for module in linear_modules(model).chain(std::iter::once(head)) {
            let selected = match (&self.target_modules, &regex) {
                (TargetModules::List(list), _) => list
                    .iter()
                    .any(|t| *t == module || module.strip_suffix(t.as_str()).is_some_and(|rest| rest.ends_with('.'))),
                (TargetModules::Regex(_), Some(regex)) => is_match(regex, &module)?,
                _ => module != "lm_head",
            };
            if selected {
                out.push(module);
            }
        }
        if out.is_empty() {
            let known = LINEARS.map(|l| l.rsplit('.').next().unwrap_or(l)).join(", ");
            return Err(Error::invalid(format!("target_modules select no module; there are {known} and lm_head")));
        }
        Ok(out)
    }

    /// Rank and scale of one module, patterns applied as `get_pattern_key` of PEFT does.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a pattern is malformed.
    pub fn rank_and_scale(&self, module: &str) -> Result<(usize, f32)> {
        let r = lookup(&self.rank_pattern, module, "rank_pattern")?.unwrap_or(self.r);
        let alpha = lookup(&self.alpha_pattern, module, "alpha_pattern")?.unwrap_or(self.lora_alpha);
        let scale = if self.use_rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 };
        Ok((r, scale as f32))
    }
}

fn is_set(value: &Value, allowed: &str) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(s) => !s.is_empty() && s != allowed,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
        Value::Bool(true) => true,
    }
}

/// 16.0 is written as 16, as PEFT does for its integer field.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

fn lookup<T: Copy>(patterns: &BTreeMap<String, T>, module: &str, key: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if is_match(&compile(&format!(r"^(?:.*\.)?(?:{pattern})$"), key)?, module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn compile(pattern: &str, key: &str) -> Result<Regex> {
    // A pattern is untrusted: bound the compiled size and, through the backtrack limit, the time.
    fancy_regex::RegexBuilder::new(pattern)
        .delegate_size_limit(1 << 20)
        .backtrack_limit(100_000)
        .build()
        .map_err(|e| Error::invalid(format!("{key}: '{pattern}' is not a regular expression: {e}")))
}

fn is_match(regex: &Regex, text: &str) -> Result<bool> {
    regex.is_match(text).map_err(|e| Error::invalid(format!("pattern '{}': {e}", regex.as_str())))
}
