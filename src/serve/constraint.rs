//! What an answer has to look like: `response_format`, the formats of other endpoints, and vLLM's names for it.

use super::openai::{ApiError, Fields};
use crate::engine::Grammar;
use serde_json::{Map, Value, json};

/// Takes all fields of chat and completions that state a form; more than one is an error.
pub(super) fn take(fields: &mut Fields) -> Result<Option<Grammar>, ApiError> {
    let format = fields.take::<Map<String, Value>>("response_format")?;
    let format = format.map(|format| response_format("response_format", format)).transpose()?.flatten();
    with_additions(fields, "response_format", format)
}

/// `format`, which the endpoint's own field `name` states, or what vLLM's additions state.
pub(super) fn with_additions(
    fields: &mut Fields,
    name: &'static str,
    format: Option<Grammar>,
) -> Result<Option<Grammar>, ApiError> {
    let mut found = format.map(|format| (name, format));
    let mut add = |name: &'static str, constraint: Option<Grammar>| {
        let Some(constraint) = constraint else { return Ok(()) };
        match found.replace((name, constraint)) {
            None => Ok(()),
            Some((other, _)) => Err(ApiError::field(name, format!("`{name}` and `{other}` exclude each other"))),
        }
    };
    if let Some(outputs) = fields.take::<Map<String, Value>>("structured_outputs")? {
        add("structured_outputs", structured_outputs(outputs)?)?;
    }
    add("guided_json", fields.take("guided_json")?.map(|schema| schema_of("guided_json", schema)).transpose()?)?;
    add("guided_regex", fields.take("guided_regex")?.map(Grammar::Regex))?;
    add("guided_choice", choice("guided_choice", fields.take("guided_choice")?)?)?;
    add("guided_grammar", fields.take("guided_grammar")?.map(Grammar::Lark))?;
    // Which library does it at vLLM.
    fields.take::<String>("guided_decoding_backend")?;
    fields.unsupported("guided_whitespace_pattern", &[])?;
    Ok(found.map(|(_, constraint)| constraint))
}

/// The format of `/v1/responses` (`text.format`) and `/v1/messages` (`output_config.format`): a schema lies beside
/// its type. `place` is the field's whole name.
pub(super) fn flat_format(place: &str, mut format: Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    match format.remove("type") {
        Some(Value::String(kind)) if kind == "json_schema" => named_schema(place, format).map(Some),
        kind => plain_format(place, kind.as_ref().and_then(Value::as_str).unwrap_or_default()),
    }
}

/// OpenAI's form, as chat and completions have it.
fn response_format(field: &str, mut format: Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    let kind = format.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "json_schema" => {
            let place = format!("{field}.json_schema");
            let Some(Value::Object(inner)) = format.remove("json_schema") else {
                return Err(ApiError::field(field, format!("`{place}` must be an object")));
            };
            named_schema(&place, inner).map(Some)
        }
        kind => plain_format(field, kind),
    }
}

fn plain_format(field: &str, kind: &str) -> Result<Option<Grammar>, ApiError> {
    match kind {
        "text" => Ok(None),
        "json_object" => Ok(Some(Grammar::JsonObject)),
        _ => Err(ApiError::field(field, format!("`{field}.type` must be text, json_object or json_schema"))),
    }
}

/// `name`, `description` and `strict` change nothing: the answer fits the schema in any case.
fn named_schema(place: &str, inner: Map<String, Value>) -> Result<Grammar, ApiError> {
    let mut inner = Fields::new(inner);
    inner.take::<String>("name")?;
    inner.take::<String>("description")?;
    inner.take::<bool>("strict")?;
    let schema = inner.take::<Value>("schema")?.ok_or_else(|| {
        ApiError::field(place.split('.').next().unwrap_or(place), format!("`{place}.schema` is required"))
    })?;
    inner.finish()?;
    Ok(Grammar::JsonSchema(schema))
}

/// vLLM's newer object.
fn structured_outputs(outputs: Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    const NAME: &str = "structured_outputs";
    let mut fields = Fields::new(outputs);
    let mut all = Vec::new();
    all.extend(fields.take("json")?.map(|schema| schema_of(NAME, schema)).transpose()?);
    all.extend(fields.take("regex")?.map(Grammar::Regex));
    all.extend(choice(NAME, fields.take("choice")?)?);
    all.extend(fields.take("grammar")?.map(Grammar::Lark));
    all.extend(fields.take::<bool>("json_object")?.filter(|on| *on).map(|_| Grammar::JsonObject));
    for name in ["disable_any_whitespace", "disable_additional_properties", "disable_fallback"] {
        fields.unsupported(name, &[json!(false)])?;
    }
    fields.unsupported("whitespace_pattern", &[])?;
    fields.unsupported("structural_tag", &[])?;
    fields.finish()?;
    if all.len() > 1 {
        return Err(ApiError::field(NAME, "`structured_outputs` must state one form only"));
    }
    Ok(all.pop())
}

/// A schema, as an object or as its text.
fn schema_of(name: &str, schema: Value) -> Result<Grammar, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|error| ApiError::field(name, format!("`{name}` is not valid JSON: {error}")))?,
        schema => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Grammar::JsonSchema(schema)),
        _ => Err(ApiError::field(name, format!("`{name}` must be a JSON schema"))),
    }
}

fn choice(name: &str, choice: Option<Vec<String>>) -> Result<Option<Grammar>, ApiError> {
    match choice {
        Some(choice) if choice.is_empty() => Err(ApiError::field(name, format!("`{name}` has no choices"))),
        choice => Ok(choice.map(Grammar::Choice)),
    }
}
