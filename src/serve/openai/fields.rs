//! A request body, field by field: whatever nobody took is an error that names it.

use super::ApiError;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Fields that change nothing here: accounting, caching and storage at OpenAI, scheduling at vLLM.
const WITHOUT_EFFECT: [&str; 10] = [
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "spaces_between_special_tokens",
];

/// The fields that are left. `null` counts as absent, as it does at OpenAI.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Of a parsed body.
    pub fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Whether a field is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// A field as it was sent, without taking it; `null` where it is absent.
    pub fn get(&self, name: &str) -> Value {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Takes a field of type `T`.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| ApiError::field(name, format!("`{name}` has the wrong type: {error}"))),
        }
    }

    /// Takes a field that has to be there.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::field(name, format!("`{name}` is required")))
    }

    /// Takes a number within `range`, which is shown to the user as it is written here.
    pub fn number(&mut self, name: &str, range: &str, within: impl Fn(f32) -> bool) -> Result<Option<f32>, ApiError> {
        let value: Option<f32> = self.take(name)?;
        match value {
            Some(value) if !(value.is_finite() && within(value)) => {
                Err(ApiError::field(name, format!("`{name}` must be in {range}, not {value}")))
            }
            value => Ok(value),
        }
    }

    /// Refuses a feature that is missing, unless the field has a value that asks for nothing.
    pub fn unsupported(&mut self, name: &str, neutral: &[Value]) -> Result<(), ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if neutral.contains(&value) => Ok(()),
            Some(value) => {
                // A long value (a schema, a document) says nothing about which feature is missing.
                let value = value.to_string();
                let shown = if value.len() <= 40 { format!(" ({value})") } else { String::new() };
                Err(ApiError::field(name, format!("`{name}`{shown} is not supported")))
            }
        }
    }

    /// All that is left must be without effect.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.0.keys().find(|name| !WITHOUT_EFFECT.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(ApiError::field(name, format!("Unrecognized request argument supplied: `{name}`"))),
        }
    }
}
