//! Lists of which a client gets a page at a time, and the query that names the page.

use super::ApiError;
use axum::Json;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What stands after the `?` of an address; whatever nobody took is an error that names it.
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Of a parsed query.
    pub fn new(fields: BTreeMap<String, String>) -> Self {
        Self(fields)
    }

    /// Takes a text.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a number within `1..=most`.
    pub fn limit(&mut self, default: usize, most: usize) -> Result<usize, ApiError> {
        match self.take("limit") {
            None => Ok(default),
            Some(text) => match text.parse() {
                Ok(n) if (1..=most).contains(&n) => Ok(n),
                _ => Err(ApiError::field("limit", format!("`limit` is {text}, expected a number from 1 to {most}"))),
            },
        }
    }

    /// Takes `metadata[key]=value` filters.
    pub fn metadata(&mut self) -> Vec<(String, String)> {
        let key = |name: &str| name.strip_prefix("metadata[")?.strip_suffix(']').map(str::to_owned);
        let names: Vec<String> = self.0.keys().filter(|name| key(name).is_some()).cloned().collect();
        names.into_iter().filter_map(|name| Some((key(&name)?, self.0.remove(&name)?))).collect()
    }

    /// All that is left is wrong.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.0.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(ApiError::field(&name, format!("Unrecognized query parameter: `{name}`"))),
        }
    }
}

/// A page of `objects`: those that follow the one whose id is `after`.
pub fn page(objects: Vec<Value>, after: Option<String>, limit: usize) -> Result<Json<Value>, ApiError> {
    let start = match &after {
        None => 0,
        Some(id) => match objects.iter().position(|object| object["id"] == **id) {
            Some(at) => at + 1,
            None => return Err(ApiError::field("after", format!("No object with id '{id}' in this list"))),
        },
    };
    let has_more = objects.len() > start + limit;
    let data: Vec<Value> = objects.into_iter().skip(start).take(limit).collect();
    let id = |object: Option<&Value>| object.map_or(Value::Null, |object| object["id"].clone());
    let (first, last) = (id(data.first()), id(data.last()));
    Ok(Json(json!({"object": "list", "data": data, "has_more": has_more, "first_id": first, "last_id": last})))
}
