//! What a job's body asks for.

use super::super::{ApiError, Fields};
use crate::tune::JobRequest;
use crate::tune::records::Hyper;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Most pairs of metadata, and the longest keys and values, as at OpenAI.
const METADATA: (usize, usize, usize) = (16, 64, 512);

/// A job's body; whatever it does not name is an error.
pub fn parse(mut fields: Fields) -> Result<JobRequest, ApiError> {
    let mut request = JobRequest {
        model: fields.require("model")?,
        training_file: fields.require("training_file")?,
        validation_file: fields.take("validation_file")?,
        suffix: fields.take("suffix")?,
        seed: fields.take::<u32>("seed")?.map(u64::from),
        metadata: fields.take("metadata")?,
        integrations: fields.take("integrations")?.unwrap_or_default(),
        ..JobRequest::default()
    };
    if let Some(metadata) = &request.metadata {
        check_metadata(metadata)?;
    }
    check_integrations(&request.integrations)?;
    // The older place of the numbers, then the newer one.
    if let Some(numbers) = fields.take::<Map<String, Value>>("hyperparameters")? {
        request.hyper = hyper(numbers, "hyperparameters", false)?;
    }
    if let Some(mut method) = fields.take::<Map<String, Value>>("method")? {
        let kind = method.remove("type").unwrap_or_default();
        request.dpo = match kind.as_str() {
            Some("supervised") => false,
            Some("dpo") => true,
            _ => {
                let message = format!("`method.type` is {kind}, expected \"supervised\" or \"dpo\"");
                return Err(ApiError::field("method.type", message));
            }
        };
        let name = if request.dpo { "dpo" } else { "supervised" };
        let mut own = match method.remove(name) {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(own)) => own,
            Some(_) => {
                return Err(ApiError::field(&format!("method.{name}"), format!("`method.{name}` must be an object")));
            }
        };
        let place = format!("method.{name}.hyperparameters");
        match own.remove("hyperparameters") {
            None | Some(Value::Null) => {}
            Some(Value::Object(numbers)) => request.hyper = hyper(numbers, &place, request.dpo)?,
            Some(_) => return Err(ApiError::field(&place, format!("`{place}` must be an object"))),
        }
        nothing_left(&own, &format!("method.{name}"))?;
        method.retain(|_, value| !value.is_null());
        nothing_left(&method, "method")?;
    }
    fields.finish()?;
    Ok(request)
}

fn nothing_left(fields: &Map<String, Value>, place: &str) -> Result<(), ApiError> {
    match fields.keys().next() {
        None => Ok(()),
        Some(name) => {
            let name = format!("{place}.{name}");
            Err(ApiError::field(&name, format!("Unrecognized request argument supplied: `{name}`")))
        }
    }
}

fn hyper(mut numbers: Map<String, Value>, place: &str, dpo: bool) -> Result<Hyper, ApiError> {
    let hyper = Hyper {
        n_epochs: auto(&mut numbers, place, "n_epochs")?,
        batch_size: auto(&mut numbers, place, "batch_size")?,
        learning_rate_multiplier: auto(&mut numbers, place, "learning_rate_multiplier")?,
        beta: if dpo { auto(&mut numbers, place, "beta")? } else { None },
    };
    nothing_left(&numbers, place)?;
    Ok(hyper)
}

/// A number, or "auto" for none.
fn auto<T: DeserializeOwned>(numbers: &mut Map<String, Value>, place: &str, name: &str) -> Result<Option<T>, ApiError> {
    match numbers.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text == "auto" => Ok(None),
        Some(value) => serde_json::from_value(value.clone()).map(Some).map_err(|_| {
            let name = format!("{place}.{name}");
            ApiError::field(&name, format!("`{name}` is {value}, expected a number or \"auto\""))
        }),
    }
}

fn check_metadata(metadata: &Map<String, Value>) -> Result<(), ApiError> {
    let (pairs, key, value) = METADATA;
    let long = |(k, v): (&String, &Value)| k.len() > key || v.as_str().is_none_or(|text| text.len() > value);
    if metadata.len() > pairs || metadata.iter().any(long) {
        let message =
            format!("`metadata` must have at most {pairs} pairs of a key of {key} and a text of {value} characters");
        return Err(ApiError::field("metadata", message));
    }
    Ok(())
}

fn check_integrations(integrations: &[Value]) -> Result<(), ApiError> {
    for (i, integration) in integrations.iter().enumerate() {
        if integration["type"] != "wandb" || !integration["wandb"]["project"].is_string() {
            let name = format!("integrations[{i}]");
            let message = format!("`{name}` must have the type \"wandb\" and `wandb` with a `project`");
            return Err(ApiError::field(&name, message));
        }
    }
    Ok(())
}
