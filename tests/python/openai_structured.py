"""Rows about answers of a given form, and about reasoning."""

import json
import re

from openai_calls import call, content, refused, streamed

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
LONG = {"max_tokens": 200, "seed": 1}
# A random model writes white space and digits for ever, where it may.
FREE = {"ignore_eos": False}


def fits(text):
    value = json.loads(text)
    assert set(value) == {"name", "age"} and len(value["name"]) <= 8 and 0 <= value["age"] <= 99, text


@call("response_format json_schema")
def _(t):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = t.chat(response_format=form, extra=FREE, **LONG)
    fits(content(answer))
    assert answer.choices[0].finish_reason == "stop"
    assert streamed(t.chat(response_format=form, extra=FREE, stream=True, **LONG)) == content(answer)
    refused(lambda: t.chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}), param="response_format")


@call("response_format json_object")
def _(t):
    # Braces: nothing else of a random model's comes to an end.
    nudged = {"logit_bias": {str(t.post("/tokenize", {"prompt": "}"})["tokens"][0]): 100}}
    answer = t.chat(response_format={"type": "json_object"}, extra=FREE, **nudged, **LONG)
    assert isinstance(json.loads(content(answer)), dict)


@call("response_format text, and others")
def _(t):
    assert content(t.chat(response_format={"type": "text"}, temperature=0)) == content(t.chat(temperature=0))
    refused(lambda: t.chat(response_format={"type": "xml"}), param="response_format")


@call("guided_json")
def _(t):
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        fits(content(t.chat(extra={**FREE, "guided_json": schema}, **LONG)))
    refused(lambda: t.chat(extra={"guided_json": "{"}), param="guided_json")


@call("guided_regex")
def _(t):
    answer = t.chat(extra={**FREE, "guided_regex": "[a-c]{3}-[0-9]{2}"}, **LONG)
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", content(answer))
    refused(lambda: t.chat(extra={"guided_regex": "("}), says="grammar")


@call("guided_choice")
def _(t):
    choices = ["left", "right", "neither of them"]
    answers = {content(t.chat(extra={**FREE, "guided_choice": choices}, seed=seed)) for seed in range(6)}
    assert answers <= set(choices), answers
    refused(lambda: t.chat(extra={"guided_choice": []}), param="guided_choice")


@call("guided_grammar")
def _(t):
    grammar = 'start: "SELECT " field " FROM t"\nfield: "a" | "b"'
    assert content(t.chat(extra={**FREE, "guided_grammar": grammar}, **LONG)) in ("SELECT a FROM t", "SELECT b FROM t")


@call("structured_outputs")
def _(t):
    form = lambda **outputs: t.chat(extra={**FREE, "structured_outputs": outputs}, **LONG)
    fits(content(form(json=SCHEMA)))
    assert content(form(choice=["one"])) == "one"
    assert re.fullmatch("x{2,5}", content(form(regex="x{2,5}")))
    assert content(form(grammar='start: "yes"')) == "yes"
    refused(lambda: form(regex="a", choice=["a"]), param="structured_outputs")
    refused(lambda: form(structural_tag="{}"), param="structural_tag")


@call("completion, structured_outputs")
def _(t):
    answer = t.complete(extra={**FREE, "structured_outputs": {"choice": ["yes", "no"]}})
    assert answer.choices[0].text in ("yes", "no") and answer.choices[0].finish_reason == "stop"


@call("structured output with logprobs, n, penalties")
def _(t):
    extra = {**FREE, "guided_regex": "[ab]{6}", "repetition_penalty": 1.1}
    answer = t.chat(extra=extra, n=3, logprobs=True, top_logprobs=2, frequency_penalty=0.5, seed=1)
    assert all(re.fullmatch("[ab]{6}", choice.message.content) for choice in answer.choices)
    assert all(len(choice.logprobs.content) >= 1 for choice in answer.choices)


# `think` ends the reasoning of a model that would go on for ever.


def think(t, *, end, **fields):
    close = {str(t.close_think): 100 if end else -100}
    return t.chat(at=t.thinking, logit_bias=close, **fields)


@call("reasoning, and how many tokens it has")
def _(t):
    answer = think(t, end=False, temperature=0)
    message = answer.choices[0].message
    assert message.reasoning and message.reasoning == message.reasoning_content and not message.content
    assert answer.usage.completion_tokens_details.reasoning_tokens == 12


@call("reasoning, stream")
def _(t):
    whole = think(t, end=False, temperature=0).choices[0].message.reasoning
    chunks = list(think(t, end=False, temperature=0, stream=True))
    assert "".join(getattr(chunk.choices[0].delta, "reasoning", None) or "" for chunk in chunks) == whole
    assert streamed(chunks) == ""


@call("reasoning, include_reasoning false")
def _(t):
    message = think(t, end=False, extra={"include_reasoning": False}).choices[0].message
    assert getattr(message, "reasoning", None) is None


@call("reasoning, then structured output")
def _(t):
    extra = {**FREE, "guided_choice": ["yes", "no"]}
    thinks = think(t, end=False, extra=extra).choices[0]
    assert thinks.finish_reason == "length" and not thinks.message.content, "the form is the content's, not the reasoning's"
    answer = think(t, end=True, extra=extra).choices[0]
    assert answer.message.content in ("yes", "no") and answer.finish_reason == "stop", answer
    chunks = list(think(t, end=True, extra=extra, stream=True, temperature=0))
    assert streamed(chunks) in ("yes", "no")


@call("reasoning that the model may begin itself, then structured output")
def _(t):
    extra = {**FREE, "guided_choice": ["yes", "no"], "add_generation_prompt": False}
    ask = lambda bias: t.chat(at=t.thinking, extra=extra, logit_bias={str(t.open_think): bias}).choices[0].message
    begins, does_not = ask(100), ask(-100)
    assert begins.reasoning and not begins.content
    assert does_not.content in ("yes", "no") and getattr(does_not, "reasoning", None) is None


@call("reasoning off by chat_template_kwargs and reasoning_effort")
def _(t):
    off = {**FREE, "guided_choice": ["yes", "no"], "chat_template_kwargs": {"enable_thinking": False}}
    assert content(think(t, end=False, extra=off)) in ("yes", "no")
    form = {**FREE, "guided_choice": ["yes", "no"]}
    assert content(think(t, end=False, extra=form, reasoning_effort="none")) in ("yes", "no")
    refused(lambda: t.chat(reasoning_effort="high"), param="reasoning_effort")


@call("reasoning, then a required tool call")
def _(t):
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    answer = think(t, end=True, extra=FREE, tools=[tool], tool_choice="required", **LONG)
    fits(answer.choices[0].message.tool_calls[0].function.arguments)
