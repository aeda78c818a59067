//! Chat templates against transformers' rendering, and the spans a training loss counts.
//!
//! `RUNTIME_CHAT_GOLDEN` names another file that `scripts/golden/chat_template.py` wrote.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs
)]

use std::path::PathBuf;

use runtime::Error;
use runtime::token::{ChatTemplate, RenderOptions, assistant_spans};
use serde_json::{Map, Value, json};

fn golden() -> Value {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer/chat.json");
    let path = std::env::var_os("RUNTIME_CHAT_GOLDEN").map_or(default, PathBuf::from);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn options(value: &Value) -> RenderOptions {
    let mut kwargs = value.as_object().unwrap().clone();
    let mut take = |name: &str| kwargs.shift_remove(name);
    RenderOptions {
        add_generation_prompt: take("add_generation_prompt").is_some_and(|v| v == true),
        continue_final_message: take("continue_final_message").is_some_and(|v| v == true),
        tools: take("tools"),
        documents: take("documents"),
        kwargs,
    }
}

fn template(golden: &Value, name: &str) -> ChatTemplate {
    let entry = &golden["templates"][name];
    ChatTemplate::new(entry["source"].as_str().unwrap(), entry["special"].as_object().unwrap().clone()).unwrap()
}

/// What differs, as a line: the text around the first differing byte.
fn difference(got: &str, want: &str) -> String {
    let at = got.bytes().zip(want.bytes()).take_while(|(a, b)| a == b).count();
    let show = |s: &str| {
        s.chars()
            .scan(0, |n, c| {
                *n += c.len_utf8();
                Some((*n, c))
            })
            .filter(|(n, _)| *n + 30 > at)
            .take(90)
            .map(|(_, c)| c)
            .collect::<String>()
    };
    format!("got {:?} want {:?}", show(got), show(want))
}

#[test]
fn renders_as_transformers() {
    let golden = golden();
    let mut failures = Vec::new();
    let mut templates: Map<String, Value> = Map::new();
    for case in golden["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let source = golden["templates"][name]["source"].as_str().unwrap();
        let special = golden["templates"][name]["special"].as_object().unwrap().clone();
        let template = match ChatTemplate::new(source, special) {
            Ok(template) => template,
            Err(error) => {
                if templates.insert(name.into(), Value::Null).is_none() {
                    failures.push(format!("{name}: does not compile: {error}"));
                }
                continue;
            }
        };
        let label: String =
            format!("{name} / {} / {}", case["conversation"], case["options"]).chars().take(120).collect();
        let messages = &golden["conversations"][case["conversation"].as_str().unwrap()];
        let got = template.render_with_spans(messages, &options(&case["options"]));
        match (case["text"].as_str(), got) {
            (Some(want), Ok((text, spans))) => {
                if text != want {
                    failures.push(format!("{label}: {}", difference(&text, want)));
                }
                // transformers leaves the spans of a message it cut open as they were.
                let cut = case["options"]["continue_final_message"] == true;
                if let Some(want_spans) = case["spans"].as_array().filter(|_| !cut) {
                    // Python counts characters.
                    let chars = |byte: usize| text[..byte].chars().count();
                    let spans: Vec<Value> = spans.iter().map(|s| json!([chars(s.start), chars(s.end)])).collect();
                    if &spans != want_spans {
                        failures.push(format!("{label}: spans {spans:?}, want {want_spans:?}"));
                    }
                }
            }
            (None, Err(error)) => {
                assert!(matches!(error, Error::Text(_) | Error::Invalid(_)), "{label}: {error:?}");
                if case["raised"] == true && error.to_string() != case["error"].as_str().unwrap() {
                    failures.push(format!("{label}: error {error}, want {}", case["error"]));
                }
            }
            (Some(_), Err(error)) => failures.push(format!("{label}: {error}")),
            (None, Ok((text, _))) => failures.push(format!("{label}: {text:?}, want the error {}", case["error"])),
        }
    }
    let cases = golden["cases"].as_array().unwrap().len();
    // A wrong rule fails hundreds of cases in one way: the first few say enough.
    let shown: Vec<&String> = failures.iter().take(12).collect();
    assert!(failures.is_empty(), "{} of {cases} cases differ: {shown:#?}", failures.len());
}

#[test]
fn clock_in_the_template() {
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d %B') }}", Map::new()).unwrap();
    let text = template.render(&json!([]), &RenderOptions::default()).unwrap();
    assert!(text.starts_with("20") && text.len() > 12, "{text}");
}

#[test]
fn errors_say_what_and_where() {
    let error = ChatTemplate::new("a\n{% if %}", Map::new()).unwrap_err();
    assert!(error.to_string().contains("line 2"), "{error}");
    let template = ChatTemplate::new("{{ messages[0].a.b }}", Map::new()).unwrap();
    let error = template.render(&json!([{"role": "user"}]), &RenderOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("chat template in line 1"), "{error}");
    let error = template.render(&json!("x"), &RenderOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "messages must be a list");
    assert!(ChatTemplate::from_hf(None, &json!({}), &Value::Null).unwrap().is_none());
}

#[test]
fn templates_of_a_folder() {
    let config = json!({"bos_token": {"content": "<s>"}, "chat_template": [
        {"name": "default", "template": "{{ bos_token }}plain"}, {"name": "tool_use", "template": "tools{{ tools|length }}"}]});
    let template = ChatTemplate::from_hf(None, &config, &Value::Null).unwrap().unwrap();
    let tools = RenderOptions { tools: Some(json!([{}])), ..RenderOptions::default() };
    assert_eq!(template.render(&json!([]), &RenderOptions::default()).unwrap(), "<s>plain");
    assert_eq!(template.render(&json!([]), &tools).unwrap(), "tools1");
    let file =
        ChatTemplate::from_hf(Some("file {{ eos_token }}"), &config, &json!({"eos_token": "E"})).unwrap().unwrap();
    assert_eq!(file.render(&json!([]), &tools).unwrap(), "file E");
}

/// The texts of the assistant's spans.
fn spans(name: &str, messages: &Value, extra: &Value) -> runtime::Result<Vec<String>> {
    let golden = golden();
    let found = assistant_spans(&template(&golden, name), messages, &options(extra))?;
    Ok(found.spans.iter().map(|span| found.text[span.clone()].to_owned()).collect())
}

#[test]
fn assistant_turns() {
    if std::env::var_os("RUNTIME_CHAT_GOLDEN").is_some() {
        return;
    }
    let golden = golden();
    let none = json!({});
    let chat = |name: &str| golden["conversations"][name].clone();
    assert_eq!(spans("smollm2", &chat("multi"), &none).unwrap(), [" Hello! <|im_end|>\n", "Fine.<|im_end|>\n"]);
    assert_eq!(spans("llama3", &chat("multi"), &none).unwrap(), ["Hello!<|eot_id|>", "Fine.<|eot_id|>"]);
    assert_eq!(spans("mistral", &chat("multi"), &none).unwrap(), [" Hello! </s>", "Fine.</s>"]);
    // Llama 2's blocks put a line end after each turn.
    assert_eq!(spans("llama2", &chat("multi"), &none).unwrap(), [" Hello! </s>\n", " Fine. </s>\n"]);
    assert_eq!(spans("smollm2", &chat("three"), &none).unwrap(), ["b<|im_end|>\n", "d<|im_end|>\n"]);
    // Reasoning of earlier turns is not in the text, so it is not counted; the last one's is.
    assert_eq!(
        spans("qwen3", &chat("think"), &none).unwrap(),
        ["b<|im_end|>\n", "<think>\nso\n</think>\n\nd<|im_end|>\n"]
    );
    assert_eq!(
        spans("qwen3", &chat("multi"), &none).unwrap(),
        [" Hello! <|im_end|>\n", "<think>\n\n</think>\n\nFine.<|im_end|>\n"]
    );
    // Tool calls are the assistant's, tool results are not.
    let tools = spans("qwen25", &chat("tools"), &none).unwrap();
    assert_eq!(tools.len(), 2);
    assert!(tools[0].starts_with("<tool_call>") || tools[0].starts_with("\n<tool_call>"), "{tools:?}");
    assert_eq!(tools[1], "It is 20.<|im_end|>\n");
    // Only generation blocks know where this template's turns are.
    assert_eq!(spans("features", &chat("skip"), &none).unwrap(), ["c</s>"]);
    assert_eq!(spans("smollm2", &chat("one"), &none).unwrap(), [""; 0]);
}

#[test]
fn turns_that_cannot_be_located() {
    if std::env::var_os("RUNTIME_CHAT_GOLDEN").is_some() {
        return;
    }
    let chat = golden()["conversations"]["multi"].clone();
    // What was said before is not what it was: here the number of messages stands in front.
    let counting = ChatTemplate::new(
        "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        Default::default(),
    );
    let error = assistant_spans(&counting.unwrap(), &chat, &RenderOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("messages[1]: cannot locate the assistant's turn"), "{error}");
}

/// Generation prompts that end in words which finished turns do not have.
#[test]
fn turns_that_open_otherwise_than_the_prompt() {
    if std::env::var_os("RUNTIME_CHAT_GOLDEN").is_some() {
        return;
    }
    let chat = golden()["conversations"]["multi"].clone();
    let off = json!({"enable_thinking": false});
    assert_eq!(spans("qwen3", &chat, &off).unwrap(), [" Hello! <|im_end|>\n", "Fine.<|im_end|>\n"]);
    // As DeepSeek-R1's: the prompt opens the reasoning, and turns lose it.
    let r1 = "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}{% else %}<|Assistant|>\
              {{ m.content.split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}\
              {% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}";
    let r1 = ChatTemplate::new(r1, Default::default()).unwrap();
    let messages = json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>so</think>b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "<t>d"}
    ]);
    let found = assistant_spans(&r1, &messages, &RenderOptions::default()).unwrap();
    let texts: Vec<_> = found.spans.iter().map(|span| &found.text[span.clone()]).collect();
    assert_eq!(texts, ["b<|end|>", "<t>d<|end|>"]);
}
