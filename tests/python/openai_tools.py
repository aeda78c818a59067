"""Rows about tool calls. The random model writes them because a grammar leaves it nothing else, so what is tested is how they
are read and shown."""

import json

from openai_calls import CHAT, call, content, refused
from openai_structured import FREE, LONG, SCHEMA, fits

TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
OTHER = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = ['{"name": "Ada", "age": 36}', '{"name": "Bob", "age": 7}']
HERMES = "".join(f'<tool_call>\n{{"name": "f", "arguments": {a}}}\n</tool_call>\n' for a in ARGUMENTS)
LLAMA = "; ".join(f'{{"name": "f", "parameters": {a}}}' for a in ARGUMENTS)


def says(t, text, **fields):
    """A chat whose answer is `text`."""
    return t.chat(tools=[TOOL, OTHER], extra={**FREE, "guided_choice": [text]}, max_tokens=200, **fields)


def calls_of(answer):
    return [(call.function.name, call.function.arguments) for call in answer.choices[0].message.tool_calls]


def calls_in(chunks):
    """The calls of a stream, put together as clients do."""
    calls = {}
    for chunk in chunks:
        for piece in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(piece.index, {"name": "", "arguments": "", "id": None})
            call["id"] = call["id"] or piece.id
            call["name"] += piece.function.name or ""
            call["arguments"] += piece.function.arguments or ""
    assert all(call["id"] for call in calls.values()) and len({call["id"] for call in calls.values()}) == len(calls)
    return [(calls[i]["name"], calls[i]["arguments"]) for i in sorted(calls)]


BOTH = [("f", arguments) for arguments in ARGUMENTS]


@call("tools, Hermes, two calls")
def _(t):
    answer = says(t, "Both." + HERMES)
    assert calls_of(answer) == BOTH and answer.choices[0].finish_reason == "tool_calls"
    assert content(answer) == "Both."
    assert all(call.id.startswith("call_") and call.type == "function" for call in answer.choices[0].message.tool_calls)


@call("tools, Hermes, stream")
def _(t):
    chunks = list(says(t, HERMES, stream=True))
    assert calls_in(chunks) == BOTH and chunks[-1].choices[0].finish_reason == "tool_calls"
    assert sum(bool(chunk.choices[0].delta.tool_calls) for chunk in chunks) > 6, "arguments come as they are written"


@call("tools, Llama, two calls")
def _(t):
    answer = says(t, LLAMA, at=t.llama)
    assert calls_of(answer) == BOTH and answer.choices[0].finish_reason == "tool_calls" and not content(answer)


@call("tools, Llama, stream")
def _(t):
    chunks = list(says(t, LLAMA, at=t.llama, stream=True))
    assert calls_in(chunks) == BOTH and chunks[-1].choices[0].finish_reason == "tool_calls"


@call("tools, parallel_tool_calls false")
def _(t):
    assert calls_of(says(t, HERMES, parallel_tool_calls=False)) == BOTH[:1]
    assert calls_in(says(t, HERMES, parallel_tool_calls=False, stream=True)) == BOTH[:1]


@call("tools, none called")
def _(t):
    plain = t.chat(temperature=0)
    for choice in ("none", "auto"):
        answer = t.chat(temperature=0, tools=[TOOL], tool_choice=choice)
        assert content(answer) and answer.choices[0].message.tool_calls is None
        assert answer.usage.prompt_tokens > plain.usage.prompt_tokens, "the model sees the tools"
    chunks = t.chat(temperature=0, tools=[TOOL], stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == content(answer)


@call("tool_choice required")
def _(t):
    answer = t.chat(tools=[TOOL], tool_choice="required", extra=FREE, parallel_tool_calls=False, **LONG)
    ((name, arguments),) = calls_of(answer)
    assert name == "f" and answer.choices[0].finish_reason == "tool_calls"
    fits(arguments)
    chunks = t.chat(tools=[TOOL], tool_choice="required", extra=FREE, parallel_tool_calls=False, stream=True, **LONG)
    ((name, arguments),) = calls_in(chunks)
    fits(arguments)
    refused(lambda: t.chat(tool_choice="required"), param="tool_choice")


@call("tool_choice of a function")
def _(t):
    named = {"type": "function", "function": {"name": "f"}}
    answer = t.chat(tools=[TOOL, OTHER], tool_choice=named, extra=FREE, **LONG)
    ((name, arguments),) = calls_of(answer)
    fits(arguments)
    assert name == "f" and answer.choices[0].finish_reason == "stop", "as at OpenAI, where the client has named it"
    ((name, streamed),) = calls_in(t.chat(tools=[TOOL, OTHER], tool_choice=named, extra=FREE, stream=True, **LONG))
    assert streamed == arguments
    unknown = {"type": "function", "function": {"name": "h"}}
    refused(lambda: t.chat(tools=[TOOL], tool_choice=unknown), param="tool_choice", says="'h'")


@call("tools, results in the conversation")
def _(t):
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": 1})}}
    history = CHAT + [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]
    longer = t.chat(messages=history, tools=[TOOL]).usage.prompt_tokens
    assert longer > t.chat(tools=[TOOL]).usage.prompt_tokens


@call("tools, malformed")
def _(t):
    refused(lambda: t.chat(tools=[{"type": "web_search"}]), param="tools[0]")
    refused(lambda: t.chat(tools=[TOOL], tool_choice="sometimes"), param="tool_choice")
