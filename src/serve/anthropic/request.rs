//! What `/v1/messages` and its `count_tokens` have in common: everything that makes the prompt.

use super::content::history;
use crate::engine::Grammar;
use crate::serve::constraint;
use crate::serve::http::App;
use crate::serve::openai::{ApiError, Fields};
use crate::serve::tools::Tools;
use crate::serve::turn::Conversation;
use crate::token::RenderOptions;
use serde_json::{Map, Value, json};

/// What was asked.
pub struct Asked {
    pub conversation: Conversation,
    pub tools: Tools,
    /// The form of the answer.
    pub format: Option<Grammar>,
    /// The last message is the beginning of the answer.
    pub prefilled: bool,
}

impl Asked {
    pub fn take(app: &App, fields: &mut Fields) -> Result<Self, ApiError> {
        let messages: Vec<Value> = fields.require("messages")?;
        let history = history(fields.take("system")?, &messages)?;
        let last = history.last().filter(|last| last["role"] == "assistant");
        if last.is_some_and(|last| last.get("tool_calls").is_some()) {
            return Err(ApiError::field(
                "messages",
                "`messages`: the last message calls tools: their results are missing",
            ));
        }
        let prefilled = last.is_some();
        let mut options = RenderOptions {
            add_generation_prompt: !prefilled,
            continue_final_message: prefilled,
            kwargs: fields.take("chat_template_kwargs")?.unwrap_or_default(),
            ..RenderOptions::default()
        };
        thinking(app, fields, &mut options)?;
        let format = output_config(app, fields, &mut options)?;
        let tools = tools(fields)?;
        // Where Anthropic's cache begins; the one here finds every prefix by itself.
        fields.take::<Value>("cache_control")?;
        fields.unsupported("speed", &[json!("standard")])?;
        for name in ["container", "context_management", "inference_geo", "mcp_servers"] {
            fields.unsupported(name, &[json!([])])?;
        }
        let conversation = Conversation { messages: history.into_value(), options, add_special: false };
        Ok(Self { conversation, tools, format, prefilled })
    }
}

/// `thinking`, where the model can be told. Its budget is a part of `max_tokens` here and has no end of its own.
fn thinking(app: &App, fields: &mut Fields, options: &mut RenderOptions) -> Result<(), ApiError> {
    let Some(thinking) = fields.take::<Map<String, Value>>("thinking")? else { return Ok(()) };
    let mut thinking = Fields::new(thinking);
    let kind: String = thinking.require("type")?;
    thinking.take::<usize>("budget_tokens")?;
    thinking.unsupported("display", &[json!("summarized")])?;
    thinking.finish()?;
    match kind.as_str() {
        "enabled" => app.style.thinking("thinking", true, options),
        "disabled" => app.style.thinking("thinking", false, options),
        // As the model likes.
        "adaptive" => Ok(()),
        kind => Err(ApiError::field("thinking", format!("`thinking`: the type '{kind}' is not supported"))),
    }
}

/// `output_config`: how much effort, and the form of the answer.
fn output_config(app: &App, fields: &mut Fields, options: &mut RenderOptions) -> Result<Option<Grammar>, ApiError> {
    let Some(config) = fields.take::<Map<String, Value>>("output_config")? else { return Ok(None) };
    let mut config = Fields::new(config);
    if let Some(effort) = config.take::<String>("effort")? {
        let effort = if effort == "max" { "xhigh" } else { effort.as_str() };
        app.style.effort("output_config", effort, options)?;
    }
    let format = config.take::<Map<String, Value>>("format")?;
    config.finish()?;
    Ok(format.map(|format| constraint::flat_format("output_config.format", format)).transpose()?.flatten())
}

fn tools(fields: &mut Fields) -> Result<Tools, ApiError> {
    let list = fields.take::<Vec<Value>>("tools")?.unwrap_or_default();
    let list = list.iter().enumerate().map(|(i, tool)| function(i, tool)).collect::<Result<Vec<Value>, ApiError>>()?;
    let Some(mut choice) = fields.take::<Value>("tool_choice")? else { return Tools::new(list, None, true) };
    let parallel = choice["disable_parallel_tool_use"] != true;
    let choice = match choice["type"].as_str() {
        Some("any") => "required".into(),
        Some("tool") => json!({"type": "function", "name": choice["name"].take()}),
        Some("auto" | "none") => choice["type"].take(),
        _ => return Err(ApiError::field("tool_choice", "`tool_choice.type` must be auto, any, tool or none")),
    };
    Tools::new(list, Some(choice), parallel)
}

/// A tool in the form of chat templates, which is OpenAI's.
fn function(i: usize, tool: &Value) -> Result<Value, ApiError> {
    let place = format!("tools[{i}]");
    let wrong = |message: String| Err(ApiError::field(&place, message));
    match tool["type"].as_str() {
        None | Some("custom") => {}
        Some(kind) => return wrong(format!("`{place}`: tools of type '{kind}' are not supported")),
    }
    if tool["name"].as_str().is_none_or(str::is_empty) {
        return wrong(format!("`{place}.name` must be a string"));
    }
    if !tool["input_schema"].is_object() {
        return wrong(format!("`{place}.input_schema` must be an object"));
    }
    let mut function = json!({"name": tool["name"]});
    if !tool["description"].is_null() {
        function["description"] = tool["description"].clone();
    }
    function["parameters"] = tool["input_schema"].clone();
    Ok(json!({"type": "function", "function": function}))
}
