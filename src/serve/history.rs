//! A conversation, message by message, in the form that chat templates are written for.

use serde_json::{Value, json};

/// Messages so far.
#[derive(Default)]
pub(super) struct History(Vec<Value>);

impl History {
    /// What the user or the system says.
    pub fn message(&mut self, role: &str, text: String) {
        self.0.push(json!({"role": role, "content": text}));
    }

    /// What the assistant thought before it went on: to speak, to call.
    pub fn thought(&mut self, text: String) {
        self.0.push(json!({"role": "assistant", "content": "", "reasoning_content": text}));
    }

    /// What the assistant said, after a thought in the same message.
    pub fn said(&mut self, text: String) {
        match self.0.last_mut() {
            Some(last) if last["role"] == "assistant" && last["content"] == "" && last.get("tool_calls").is_none() => {
                last["content"] = text.into();
            }
            _ => self.message("assistant", text),
        }
    }

    /// A call that the assistant made, in the message that it belongs to.
    pub fn called(&mut self, id: &str, name: &str, arguments: Value) {
        if self.0.last().is_none_or(|last| last["role"] != "assistant") {
            self.message("assistant", String::new());
        }
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let Some(Value::Object(last)) = self.0.last_mut() else { return };
        if let Value::Array(calls) = last.entry("tool_calls").or_insert_with(|| json!([])) {
            calls.push(call);
        }
    }

    /// What came of a call.
    pub fn result(&mut self, id: &str, text: String) {
        self.0.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
    }

    /// The newest message.
    pub fn last(&self) -> Option<&Value> {
        self.0.last()
    }

    /// All of them.
    pub fn into_value(self) -> Value {
        self.0.into()
    }
}
