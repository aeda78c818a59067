use super::{Block, Blocks, Calls, Change, Form, Kind, Part, Reader, Reasoning, merged};

fn form(calls: Calls) -> Form {
    Form { reasoning: Reasoning::Tagged { open: false }, calls, parallel: true }
}

/// Neighbours of one kind as one; the same for the whole text, single characters, and pieces of seven bytes.
fn read(form: &Form, text: &str) -> Vec<Part> {
    let by = |size: usize| {
        let chars: Vec<char> = text.chars().collect();
        let mut reader = Reader::new(form);
        let mut parts = Vec::new();
        for piece in chars.chunks(size) {
            parts.extend(reader.push(&piece.iter().collect::<String>()));
        }
        parts.extend(reader.finish());
        merged(parts)
    };
    let whole = by(text.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(by(size), whole, "in pieces of {size}: {text:?}");
    }
    whole
}

fn content(text: &str) -> Part {
    Part::Content(text.into())
}
fn thought(text: &str) -> Part {
    Part::Reasoning(text.into())
}
fn call(name: &str, arguments: &str) -> [Part; 2] {
    [Part::Call(name.into()), Part::Arguments(arguments.into())]
}

#[test]
fn reasoning_is_set_apart() {
    let tagged = |open| Form { reasoning: Reasoning::Tagged { open }, calls: Calls::None, parallel: true };
    let both = [thought("Let me see.\n\n2 < 3 </thin"), content("Yes.")];
    assert_eq!(read(&tagged(false), "<think>\nLet me see.\n\n2 < 3 </thin\n</think>\n\nYes."), both);
    assert_eq!(read(&tagged(false), "\n<think>Let me see.\n\n2 < 3 </thin</think>Yes."), both);
    assert_eq!(read(&tagged(true), "\nLet me see.\n\n2 < 3 </thin\n</think>\n\nYes."), both);
    // An empty one, as Qwen3 writes when it is told not to think.
    assert_eq!(read(&tagged(false), "<think>\n\n</think>\n\nYes."), [content("Yes.")]);
    // Cut off by the length.
    assert_eq!(read(&tagged(true), "so many thoughts  "), [thought("so many thoughts")]);
    assert_eq!(read(&tagged(false), "<think>so many </thi"), [thought("so many </thi")]);
    // Only at the start.
    assert_eq!(read(&tagged(false), " a <think>b</think>"), [content(" a <think>b</think>")]);
    assert_eq!(read(&tagged(false), "<thin"), [content("<thin")]);
    assert_eq!(read(&tagged(false), ""), []);
    let inline = Form { reasoning: Reasoning::Inline, ..tagged(true) };
    assert_eq!(read(&inline, "<think>a</think>b"), [content("<think>a</think>b")]);
}

#[test]
fn hermes_calls() {
    let one = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris, {FR}\", \"n\": [1, {}]}}\n</tool_call>";
    let weather = call("get_weather", "{\"city\": \"Paris, {FR}\", \"n\": [1, {}]}");
    assert_eq!(read(&form(Calls::Hermes), one), weather);
    let two = format!("I will look.\n{one}\n<tool_call>{{\"arguments\": {{}}, \"name\": \"now\"}}</tool_call>\n");
    let expected = [vec![content("I will look.")], weather.to_vec(), call("now", "{}").to_vec()].concat();
    assert_eq!(read(&form(Calls::Hermes), &two), expected);
    let single = Form { parallel: false, ..form(Calls::Hermes) };
    assert_eq!(read(&single, &two), expected[..3]);
    assert_eq!(
        read(&form(Calls::Hermes), &format!("<think>\nHm.\n</think>\n\n{one}")),
        [vec![thought("Hm.")], weather.to_vec()].concat()
    );
    // Without a closing tag, as when that is a stop string.
    assert_eq!(read(&form(Calls::Hermes), one.strip_suffix("</tool_call>").unwrap()), weather);
    // No arguments at all, and arguments in a string.
    assert_eq!(read(&form(Calls::Hermes), "<tool_call>{\"name\": \"now\"}</tool_call>"), call("now", "{}"));
    let quoted = r#"<tool_call>{"name": "f", "arguments": "{\"a\": \"\\\"\"}"}</tool_call>"#;
    assert_eq!(read(&form(Calls::Hermes), quoted), call("f", r#"{"a": "\""}"#));
    assert_eq!(read(&form(Calls::None), one), [content(one)]);
}

#[test]
fn what_is_no_call_is_content() {
    for text in [
        "Just <b>text</b> <tool_cal",
        "<tool_call>never JSON</tool_call>",
        "<tool_call>{\"names\": \"f\"}</tool_call> and more",
        "<tool_call>{\"name\": 7, \"arguments\": {}}",
        "<tool_call>{\"nam",
        "ends with space \n",
    ] {
        assert_eq!(read(&form(Calls::Hermes), text), [content(text)], "{text}");
    }
    // The name is out, so it stays a call; what follows its tag is read on.
    let cut = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}, oops</tool_call>after";
    assert_eq!(read(&form(Calls::Hermes), cut), [call("f", "{\"a\": 1}").to_vec(), vec![content("after")]].concat());
    let length = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"unfinis";
    assert_eq!(read(&form(Calls::Hermes), length), call("f", "{\"a\": \"unfinis"));
}

#[test]
fn llama_calls() {
    let weather = call("get_weather", "{\"city\": \"Paris\"}");
    let one = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}";
    assert_eq!(read(&form(Calls::Llama), one), weather);
    assert_eq!(read(&form(Calls::Llama), &format!("\n<|python_tag|>{one}")), weather);
    let typed = "{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}";
    assert_eq!(read(&form(Calls::Llama), &format!("{one}; {typed}")), [weather.clone(), weather.clone()].concat());
    for text in ["Hello {world}", "{\"answer\": 42}", "{not json", " ;x", "<|pyth"] {
        assert_eq!(read(&form(Calls::Llama), text), [content(text)], "{text}");
    }
}

#[test]
fn forced_calls() {
    let list = "[{\"name\": \"f\", \"parameters\": {\"a\": 1}}, {\"name\": \"g\", \"parameters\": {}}]";
    assert_eq!(read(&form(Calls::List), list), [call("f", "{\"a\": 1}"), call("g", "{}")].concat());
    assert_eq!(read(&form(Calls::Named("f".into())), "{\"a\": 1}"), call("f", "{\"a\": 1}"));
}

#[test]
fn blocks_are_runs_of_one_kind() {
    let text = "<think>\nHm.\n</think>\n\nI look.\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\
                \n<tool_call>{\"name\": \"f\"}</tool_call>";
    let block = |kind: Kind, text: &str| Block { kind, text: text.into(), tokens: Vec::new() };
    let call = || Kind::Call("f".into());
    let whole =
        [block(Kind::Reasoning, "Hm."), block(Kind::Text, "I look."), block(call(), "{\"a\": 1}"), block(call(), "{}")];
    let mut blocks = Blocks::new(&form(Calls::Hermes));
    let mut changes: Vec<Change> = text.chars().flat_map(|c| blocks.push(&c.to_string(), Vec::new())).collect();
    changes.extend(blocks.finish());
    // What came piece by piece is what the closed blocks have.
    let mut open: Option<Block> = None;
    let mut closed = Vec::new();
    for change in changes {
        match change {
            Change::Open(kind) => assert!(open.replace(block(kind, "")).is_none()),
            Change::More { text, .. } => open.as_mut().unwrap().text.push_str(&text),
            Change::Close(block) => {
                assert_eq!(open.take(), Some(block.clone()));
                closed.push(block);
            }
        }
    }
    assert_eq!(closed, whole);
    assert!(Blocks::new(&form(Calls::None)).finish().is_empty());
}
