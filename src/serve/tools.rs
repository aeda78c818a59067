//! The tools of a request: checked, shown to the model, and required of it.

use super::openai::{ApiError, Fields};
use serde_json::{Value, json};

/// Which tools there are, and which the answer may or must call.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools {
    /// In OpenAI's form, which chat templates expect.
    pub list: Vec<Value>,
    pub choice: Choice,
    /// More than one call in an answer.
    pub parallel: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Choice {
    #[default]
    None,
    Auto,
    Required,
    Named(String),
}

impl Tools {
    /// Chat's `tools`, `tool_choice` and `parallel_tool_calls`.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let list = fields.take::<Vec<Value>>("tools")?.unwrap_or_default();
        let list = list.into_iter().enumerate().map(|(i, tool)| checked(i, tool)).collect::<Result<Vec<_>, _>>()?;
        let choice = fields.take("tool_choice")?;
        Self::new(list, choice, fields.take("parallel_tool_calls")?.unwrap_or(true))
    }

    /// `list` is in chat's form; `choice` in chat's or that of `/v1/responses`.
    pub fn new(mut list: Vec<Value>, choice: Option<Value>, parallel: bool) -> Result<Self, ApiError> {
        let wrong = |message: String| ApiError::field("tool_choice", message);
        let choice = match choice {
            None if list.is_empty() => Choice::None,
            None => Choice::Auto,
            Some(choice) if choice["type"] == "allowed_tools" => allowed(&mut list, &choice)?,
            Some(choice) => match (choice.as_str(), choice["type"].as_str()) {
                (Some("none"), _) => Choice::None,
                (Some("auto"), _) if list.is_empty() => Choice::None,
                (Some("auto"), _) => Choice::Auto,
                (Some("required"), _) => Choice::Required,
                (_, Some("function")) => {
                    let name = choice["function"]["name"].as_str().or(choice["name"].as_str());
                    let name = name.ok_or_else(|| wrong("`tool_choice` must name a function".into()))?;
                    Choice::Named(name.into())
                }
                _ => return Err(wrong(format!("`tool_choice` must be none, auto, required or a function: {choice}"))),
            },
        };
        let tools = Self { list, choice, parallel };
        match &tools.choice {
            Choice::Required if tools.list.is_empty() => Err(wrong("`tool_choice` needs `tools`".into())),
            Choice::Named(name) if tools.parameters(name).is_none() => {
                Err(wrong(format!("`tool_choice`: there is no function '{name}' in `tools`")))
            }
            _ => Ok(tools),
        }
    }

    fn parameters(&self, name: &str) -> Option<Value> {
        let tool = self.list.iter().find(|tool| tool["function"]["name"] == name)?;
        Some(parameters(tool))
    }

    /// What the answer has to be, where a call is required: vLLM's schemas.
    pub fn schema(&self) -> Option<Value> {
        match &self.choice {
            Choice::None | Choice::Auto => None,
            Choice::Named(name) => self.parameters(name),
            Choice::Required => {
                let call = |tool: &Value| {
                    json!({
                        "type": "object",
                        "properties": {
                            "name": {"type": "string", "enum": [tool["function"]["name"]]},
                            "parameters": parameters(tool),
                        },
                        "required": ["name", "parameters"],
                        "additionalProperties": false,
                    })
                };
                let calls: Vec<Value> = self.list.iter().map(call).collect();
                let mut schema = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}});
                if !self.parallel {
                    schema["maxItems"] = 1.into();
                }
                Some(schema)
            }
        }
    }
}

fn parameters(tool: &Value) -> Value {
    let none = || json!({"type": "object", "properties": {}});
    Some(tool["function"]["parameters"].clone()).filter(Value::is_object).unwrap_or_else(none)
}

/// A tool in chat's form.
fn checked(i: usize, tool: Value) -> Result<Value, ApiError> {
    let place = format!("tools[{i}]");
    if tool["type"] != "function" {
        return Err(ApiError::field(&place, format!("`{place}.type` must be \"function\"")));
    }
    if tool["function"]["name"].as_str().is_none_or(str::is_empty) {
        return Err(ApiError::field(&place, format!("`{place}.function.name` must be a string")));
    }
    Ok(tool)
}

/// `{"type": "allowed_tools", "mode": …, "tools": […]}`: only those of the list.
fn allowed(list: &mut Vec<Value>, choice: &Value) -> Result<Choice, ApiError> {
    let choice = choice.get("allowed_tools").unwrap_or(choice);
    let names: Vec<&str> = choice["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|tool| tool["function"]["name"].as_str().or(tool["name"].as_str()))
        .collect();
    list.retain(|tool| names.iter().any(|name| tool["function"]["name"] == *name));
    match choice["mode"].as_str() {
        Some("auto") if list.is_empty() => Ok(Choice::None),
        Some("auto") => Ok(Choice::Auto),
        Some("required") => Ok(Choice::Required),
        _ => Err(ApiError::field("tool_choice", "`tool_choice.mode` must be auto or required")),
    }
}

/// Writes tools into the conversation in Hermes' form, for templates that know none: their descriptions into the
/// system message, calls into what the assistant said, results into what the user says.
pub(super) fn spell_out(messages: Value, tools: &[Value]) -> Value {
    let Value::Array(messages) = messages else { return messages };
    let mut out: Vec<Value> = Vec::with_capacity(messages.len() + 1);
    if !tools.is_empty() {
        out.push(json!({"role": "system", "content": description(tools)}));
    }
    for mut message in messages {
        match message["role"].as_str() {
            Some("system") if out.len() == 1 && out[0]["role"] == "system" => {
                let content = format!("{}\n\n{}", text(&message["content"]), text(&out[0]["content"]));
                out[0]["content"] = content.into();
                continue;
            }
            Some("tool") => {
                let result = format!("<tool_response>\n{}\n</tool_response>", text(&message["content"]));
                match out.last_mut().filter(|last| last["role"] == "user" && last["results"] == true) {
                    Some(last) => last["content"] = format!("{}\n{result}", text(&last["content"])).into(),
                    None => out.push(json!({"role": "user", "content": result, "results": true})),
                }
                continue;
            }
            Some("assistant") => {
                let calls = message.as_object_mut().and_then(|fields| fields.remove("tool_calls"));
                let mut said = text(&message["content"]).to_owned();
                for call in calls.as_ref().and_then(Value::as_array).into_iter().flatten() {
                    let function = &call["function"];
                    let object = json!({"name": function["name"], "arguments": function["arguments"]});
                    let gap = if said.is_empty() { "" } else { "\n" };
                    said.push_str(&format!("{gap}<tool_call>\n{object}\n</tool_call>"));
                }
                message["content"] = said.into();
            }
            _ => {}
        }
        out.push(message);
    }
    for message in &mut out {
        if let Some(fields) = message.as_object_mut() {
            fields.shift_remove("results");
        }
    }
    Value::Array(out)
}

fn text(content: &Value) -> &str {
    content.as_str().unwrap_or_default()
}

fn description(tools: &[Value]) -> String {
    let list: Vec<String> = tools.iter().map(Value::to_string).collect();
    format!(
        "# Tools\n\nYou may call functions to help with the request. Their descriptions are within \
         <tools></tools>:\n<tools>\n{}\n</tools>\n\nTo call one, answer with a JSON object of its name and arguments \
         within <tool_call></tool_call>:\n<tool_call>\n{{\"name\": <function-name>, \"arguments\": \
         <arguments-as-object>}}\n</tool_call>",
        list.join("\n")
    )
}
