//! How the model at hand writes calls and reasoning, from its chat template.

use super::answer::{Calls, Form, Reasoning};
use super::openai::ApiError;
use super::tools::{Choice, Tools, spell_out};
use crate::error::{Error, Result};
use crate::model::LoadedModel;
use crate::token::RenderOptions;
use serde_json::Value;

/// Which form of tool calls to look for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolStyle {
    /// What the chat template shows the model.
    #[default]
    Auto,
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`
    Hermes,
    /// `{"name": …, "parameters": …}`
    Llama3Json,
}

impl std::str::FromStr for ToolStyle {
    type Err = Error;

    /// vLLM's names of parsers.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "hermes" | "qwen" | "qwen2" | "qwen2_5" | "qwen3" => Ok(Self::Hermes),
            "llama3_json" | "llama4_json" => Ok(Self::Llama3Json),
            _ => Err(Error::invalid(format!("tool-call parser '{name}': there are auto, hermes and llama3_json"))),
        }
    }
}

/// Whether to set `<think>…</think>` apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReasoningStyle {
    /// Where template or vocabulary have `<think>`.
    #[default]
    Auto,
    /// Always.
    Think,
    /// Never: it stays in the content.
    None,
}

impl std::str::FromStr for ReasoningStyle {
    type Err = Error;

    /// vLLM's names of parsers, of which many read the same tags.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            "qwen3" | "deepseek_r1" | "deepseek_v3" | "glm45" | "think" => Ok(Self::Think),
            _ => Err(Error::invalid(format!(
                "reasoning parser '{name}': there are auto, none, qwen3 and deepseek_r1 (<think>…</think>)"
            ))),
        }
    }
}

/// What is known about a model's way to write.
pub(super) struct Style {
    /// The form of calls; `None`: one that is not understood.
    calls: Option<Calls>,
    /// The template does not know tools: they are written into the messages.
    spells_out: bool,
    reasoning: bool,
    /// Names of the variables by which a request turns reasoning up and down.
    variables: Vec<&'static str>,
}

impl Style {
    pub fn of(model: &LoadedModel, tools: ToolStyle, reasoning: ReasoningStyle) -> Self {
        let template = model.chat.as_ref();
        let (plain, with_tools) = template.map_or(("", ""), |chat| (chat.source(), chat.tool_source()));
        let knows_tools = with_tools.contains("tools");
        let calls = match tools {
            ToolStyle::Hermes => Some(Calls::Hermes),
            ToolStyle::Llama3Json => Some(Calls::Llama),
            ToolStyle::Auto if !knows_tools => Some(Calls::Hermes),
            // Qwen3-Coder has XML within the same tags.
            ToolStyle::Auto if with_tools.contains("<function=") => None,
            ToolStyle::Auto if with_tools.contains("<tool_call>") => Some(Calls::Hermes),
            ToolStyle::Auto if with_tools.contains("ipython") => Some(Calls::Llama),
            ToolStyle::Auto => None,
        };
        let token = model.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_id("<think>"));
        let reasoning = match reasoning {
            ReasoningStyle::Auto => plain.contains("<think>") || token.is_some(),
            ReasoningStyle::Think => true,
            ReasoningStyle::None => false,
        };
        let variables = ["reasoning_effort", "enable_thinking"].into_iter();
        let variables = variables.filter(|name| plain.contains(name)).collect();
        Self { calls, spells_out: !knows_tools, reasoning, variables }
    }

    /// Puts tools where the template, or in its stead the messages, show them.
    pub fn show(&self, tools: &Tools, messages: Value, options: &mut RenderOptions) -> Value {
        if self.spells_out {
            return spell_out(messages, &tools.list);
        }
        options.tools = (!tools.list.is_empty()).then(|| tools.list.clone().into());
        messages
    }

    /// What to look for in the answer to `prompt`.
    pub fn form(&self, tools: &Tools, prompt: &str) -> std::result::Result<Form, ApiError> {
        let calls = match &tools.choice {
            Choice::None => Calls::None,
            Choice::Named(name) => Calls::Named(name.clone()),
            Choice::Required => Calls::List,
            Choice::Auto => self.calls.clone().ok_or_else(|| {
                let message = "this model's form of tool calls is not understood; `tool_choice` \"required\" or a \
                               function works, \"none\" only shows the `tools`";
                ApiError::field("tools", message)
            })?,
        };
        let reasoning = match self.reasoning {
            true => Reasoning::Tagged { open: prompt.trim_end().ends_with("<think>") },
            false => Reasoning::Inline,
        };
        Ok(Form { reasoning, calls, parallel: tools.parallel })
    }

    /// `reasoning_effort` as the template's own variable; an error where there is none.
    pub fn effort(&self, field: &str, effort: &str, options: &mut RenderOptions) -> std::result::Result<(), ApiError> {
        const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
        if !EFFORTS.contains(&effort) {
            return Err(ApiError::field(field, format!("`{field}` must be one of {}", EFFORTS.join(", "))));
        }
        let Some(name) = self.variables.first() else {
            return Err(ApiError::field(field, format!("`{field}`: this model has no way to set it")));
        };
        let value = if *name == "reasoning_effort" { effort.into() } else { Value::Bool(effort != "none") };
        options.kwargs.entry(*name).or_insert(value);
        Ok(())
    }

    /// Reasoning on or off; an error where the model cannot be told.
    pub fn thinking(&self, field: &str, on: bool, options: &mut RenderOptions) -> std::result::Result<(), ApiError> {
        match (self.reasoning, on) {
            (false, true) => Err(ApiError::field(field, format!("`{field}`: this model does not reason"))),
            (false, false) => Ok(()),
            // It reasons unless it is told otherwise.
            (true, true) if self.variables.first() != Some(&"enable_thinking") => Ok(()),
            (true, on) => self.effort(field, if on { "high" } else { "none" }, options),
        }
    }
}
