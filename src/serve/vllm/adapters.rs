//! `POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`.

use crate::error::Error;
use crate::format::peft::Adapter;
use crate::serve::body::JsonBody;
use crate::serve::http::App;
use crate::serve::openai::ApiError;
use axum::extract::State;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// Loads an adapter from a folder of the server's; requests select it by its name from then on.
pub async fn load(State(app): State<Arc<App>>, JsonBody(mut fields): JsonBody) -> Result<String, ApiError> {
    let name: String = fields.take("lora_name")?.unwrap_or_default();
    let path: String = fields.take("lora_path")?.unwrap_or_default();
    let in_place = fields.take("load_inplace")?.unwrap_or(false);
    fields.unsupported("base_model_name", &app.names.iter().map(|name| json!(name)).collect::<Vec<_>>())?;
    fields.finish()?;
    if name.is_empty() || path.is_empty() {
        let missing = if name.is_empty() { "lora_name" } else { "lora_path" };
        return Err(ApiError::field(missing, "Both 'lora_name' and 'lora_path' must be provided."));
    }
    if app.names.contains(&name) {
        return Err(ApiError::field("lora_name", format!("'{name}' is the name of the base model.")));
    }
    if !in_place && app.engine.adapters().contains(&name) {
        let message = format!(
            "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set \
             'load_inplace' to True."
        );
        return Err(ApiError::field("lora_name", message));
    }
    app.blocking(move |app| {
        let failed = |error: Error| ApiError::field("lora_path", format!("Loading lora {name} failed: {error}"));
        let folder = PathBuf::from(&path);
        if !folder.is_dir() {
            return Err(ApiError::not_found(format!("Loading lora {name} failed: no adapter found for {path}")));
        }
        let adapter = Adapter::read(&folder, app.engine.model().config()).map_err(failed)?;
        app.engine.load_adapter(&name, &adapter).map_err(failed)?;
        Ok(format!("Success: LoRA adapter '{name}' added successfully."))
    })
    .await
}

/// Forgets an adapter; requests that use it go on.
pub async fn unload(State(app): State<Arc<App>>, JsonBody(mut fields): JsonBody) -> Result<String, ApiError> {
    let name: String = fields.take("lora_name")?.unwrap_or_default();
    // A number that vLLM had for each adapter, and no longer asks for.
    fields.take::<i64>("lora_int_id")?;
    fields.finish()?;
    if name.is_empty() {
        let message = "'lora_name' needs to be provided to unload a LoRA adapter.";
        return Err(ApiError::field("lora_name", message));
    }
    app.blocking(move |app| {
        if !app.engine.adapters().contains(&name) {
            return Err(ApiError::not_found(format!("The lora adapter '{name}' cannot be found.")));
        }
        app.engine.unload_adapter(&name)?;
        Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
    })
    .await
}
