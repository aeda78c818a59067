"""Calls /v1/responses and /v1/embeddings of a running server with OpenAI's own client.

    openai_responses.py URL MODEL ADAPTER THINKING_URL

THINKING_URL is a server that sets <think>…</think> apart.
"""

import json
import math
import sys
from typing import Literal

import openai
import pydantic
from client_tests import ON, refused, run

BAD = openai.BadRequestError
LOGPROBS = ["message.output_text.logprobs"]
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "name": "weather", "description": "Tells the weather.", "parameters": CITY, "strict": True}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
# What a random model would not say by itself.
SCRIPT = r'<think>\n[a-d]{5}\n</think>\n\n[e-h]{5}(\n<tool_call>\n\{"name": "weather", "arguments": \{"city": "Oslo"\}\}\n</tool_call>){2}'


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Bergen"]
    north: bool


class Tests:
    def __init__(self, url, model, adapter, thinking_url):
        self.client = openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0)
        self.thinking = openai.OpenAI(base_url=thinking_url, api_key="EMPTY", max_retries=0)
        self.model, self.adapter = model, adapter

    def create(self, input="Say something.", extra=None, client=None, **fields):
        fields = {"model": self.model, "max_output_tokens": 12, "temperature": 0, **fields}
        return (client or self.client).responses.create(input=input, extra_body={**ON, **(extra or {})}, **fields)

    def events(self, **fields):
        events = list(self.create(stream=True, **fields))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
        assert events[0].response.status == "in_progress" and events[0].response.id == events[-1].response.id
        return events

    def embed(self, input, **fields):
        return self.client.embeddings.create(model=self.model, input=input, **fields)

    def test_response(self):
        answer = self.create(instructions="You are brief.", metadata={"a": "b"}, user="me", store=True)
        assert answer.object == "response" and answer.id.startswith("resp_") and answer.created_at > 1.6e9
        assert (answer.model, answer.temperature, answer.store) == (self.model, 0, False)
        assert answer.instructions == "You are brief." and answer.metadata == {"a": "b"} and answer.error is None
        assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
        [item] = answer.output
        assert (item.type, item.role, item.status) == ("message", "assistant", "incomplete")
        assert item.id.startswith("msg_") and item.content[0].annotations == [] and item.content[0].logprobs == []
        assert answer.output_text
        usage = answer.usage
        assert usage.output_tokens == 12 and usage.total_tokens == usage.input_tokens + 12
        assert usage.output_tokens_details.reasoning_tokens == 0
        # The same conversation asked of chat.
        messages = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say something."}]
        chat = self.client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=12, temperature=0, extra_body=ON
        )
        assert chat.choices[0].message.content == answer.output_text
        assert chat.usage.prompt_tokens == usage.input_tokens
        stopped = self.create(extra={"stop_token_ids": list(range(3, 320))})
        assert stopped.status == "completed" and stopped.completed_at and stopped.output_text == ""
        assert self.create(model=self.adapter).model == self.adapter

    def test_cached_tokens(self):
        text = "The same long beginning of many a conversation. " * 4
        self.create(text)
        usage = self.create(text + "And its end.").usage
        assert 0 < usage.input_tokens_details.cached_tokens < usage.input_tokens

    def test_input_items(self):
        same = [
            "a\nb",
            [{"role": "user", "content": "a\nb"}],
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
        ]
        assert len({self.create(input).output_text for input in same}) == 1
        first = self.create()
        # An answer goes back as it came.
        followed = self.create([{"role": "user", "content": "Say something."}, *first.output, {"role": "user", "content": "More."}])
        assert followed.usage.input_tokens > first.usage.input_tokens + 12
        thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
        assert self.create([{"role": "user", "content": "Rain?"}, thought, CALL, RESULT]).output_text
        for input, place in [
            ([], "input"),
            (7, "input"),
            ([{"role": "robot", "content": "x"}], "input[0]"),
            ([{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}], "input[0].content[0]"),
            ([{"type": "item_reference", "id": "msg_1"}], "input[0]"),
            ([{"type": "function_call_output", "output": "rain"}], "input[0]"),
        ]:
            refused(lambda: self.create(input), BAD, place, says=place)

    def test_stream(self):
        whole = self.create()
        events = self.events()
        kinds = [event.type for event in events]
        assert kinds[2:4] == ["response.output_item.added", "response.content_part.added"], kinds
        ends = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
        assert kinds[-4:] == ["response." + end for end in ends], kinds
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert "".join(event.delta for event in deltas) == whole.output_text == events[-4].text
        last = events[-1].response
        assert last.output_text == whole.output_text and last.usage == whole.usage
        assert {event.item_id for event in deltas} == {last.output[0].id}
        with self.client.responses.stream(model=self.model, input="Say something.", temperature=0, max_output_tokens=12, extra_body=ON) as stream:
            final = [event for event in stream][-1]
        assert final.type == "response.incomplete" and final.response.output_text == whole.output_text

    def test_logprobs(self):
        [item] = self.create(include=LOGPROBS, top_logprobs=2).output
        logprobs = item.content[0].logprobs
        assert len(logprobs) == 12
        assert all(token.top_logprobs[0].token == token.token and len(token.top_logprobs) == 2 for token in logprobs)
        events = self.events(include=LOGPROBS)
        streamed = [token for event in events if event.type == "response.output_text.delta" for token in event.logprobs]
        assert [token.logprob for token in streamed] == [token.logprob for token in logprobs]
        refused(lambda: self.create(top_logprobs=2), BAD, "top_logprobs")
        refused(lambda: self.create(include=LOGPROBS, top_logprobs=21), BAD, "top_logprobs")
        refused(lambda: self.create(include=["file_search_call.results"]), BAD, "include")

    def test_call(self):
        """Forced, since a random model calls nothing by itself; then its result goes back."""
        fields = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 64}
        question = {"role": "user", "content": "Rain in Oslo?"}
        answer = self.create([question], extra={"ignore_eos": False}, **fields)
        [call] = answer.output
        assert (call.type, call.name, call.status) == ("function_call", "weather", "completed") and answer.status == "completed"
        assert json.loads(call.arguments) == {"city": "Oslo"} and call.call_id.startswith("call_")
        events = self.events(input=[question], extra={"ignore_eos": False}, **fields)
        kinds = [event.type for event in events]
        assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"], kinds
        deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(deltas) == events[-3].arguments == call.arguments
        assert events[-1].response.output[0].id == events[-2].item.id and events[-1].response.tools[0].name == "weather"
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        final = self.create([question, call, result], tools=[WEATHER])
        assert final.output[0].type == "message" and final.output_text
        required = self.create([question], tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_output_tokens=64)
        assert [item.name for item in required.output] == ["weather"]
        refused(lambda: self.create(tools=[{"type": "web_search"}]), BAD, "tools[0]", says="web_search")
        refused(lambda: self.create(tools=[WEATHER], tool_choice={"type": "function", "name": "g"}), BAD, "tool_choice")

    def test_reasoning_and_parallel_calls(self):
        extra = {"structured_outputs": {"regex": SCRIPT}, "ignore_eos": False}
        fields = {"tools": [WEATHER], "max_output_tokens": 300, "client": self.thinking, "extra": extra}
        answer = self.create(**fields)
        thought, said, *calls = answer.output
        assert (thought.type, thought.summary, len(thought.content[0].text)) == ("reasoning", [], 5), answer
        assert answer.usage.output_tokens_details.reasoning_tokens >= 5 and len(said.content[0].text) == 5
        assert [json.loads(call.arguments) for call in calls] == [{"city": "Oslo"}] * 2
        assert len({call.call_id for call in calls}) == 2
        events = self.events(**fields)
        streamed = events[-1].response
        assert events[-1].type == "response.completed" and streamed.usage.output_tokens == answer.usage.output_tokens
        assert [item.type for item in streamed.output] == ["reasoning", "message", "function_call", "function_call"]
        assert "".join(e.delta for e in events if e.type == "response.reasoning_text.delta") == thought.content[0].text
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert done == streamed.output and streamed.output_text == answer.output_text
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls]
        question = {"role": "user", "content": "Rain?"}
        assert self.create([question, *answer.output, *results], client=self.thinking).output
        self.create(include=["reasoning.encrypted_content"], reasoning={"summary": "auto"})

    def test_parse(self):
        fields = {"model": self.model, "input": "Where?", "max_output_tokens": 200, "temperature": 0}
        answer = self.client.responses.parse(text_format=Place, **fields)
        assert answer.status == "completed" and isinstance(answer.output_parsed, Place), answer
        with self.client.responses.stream(text_format=Place, **fields) as stream:
            assert stream.get_final_response().output_parsed == answer.output_parsed
        free = self.create(text={"format": {"type": "json_object"}}, max_output_tokens=3)
        assert free.output_text.startswith("{")
        assert self.create(text={"format": {"type": "text"}, "verbosity": "medium"}).output_text
        refused(lambda: self.create(text={"format": {"type": "xml"}}), BAD, says="text.format")
        refused(lambda: self.create(text={"format": {"type": "json_schema", "name": "x"}}), BAD, "text", says="schema")
        refused(lambda: self.create(text={"verbosity": "low"}), BAD, "verbosity")

    def test_refused_fields(self):
        for field, value in [
            ("previous_response_id", "resp_1"),
            ("conversation", "conv_1"),
            ("background", True),
            ("truncation", "auto"),
            ("prompt", {"id": "p"}),
            ("max_output_tokens", 0),
            ("temperature", 3),
        ]:
            refused(lambda: self.create(**{field: value}), BAD, field, says=field)
        refused(lambda: self.create(reasoning={"effort": "high"}), BAD, "reasoning")
        for extra in ({"n": 2}, {"messages": []}, {"max_tokens": 3}, {"response_format": {"type": "text"}}):
            [field] = extra
            refused(lambda: self.create(extra=extra), BAD, field, says=field)
        code = refused(lambda: self.create("word " * 5000), BAD, "input").code
        assert code == "context_length_exceeded", code
        refused(lambda: self.create(model="nobody"), openai.NotFoundError, "model")
        neutral = {"truncation": "disabled", "background": False, "service_tier": "auto", "safety_identifier": "x"}
        assert self.create(parallel_tool_calls=True, top_p=1, reasoning={"summary": "auto"}, **neutral).output_text

    def test_embeddings(self):
        one = self.embed("Once upon a time")
        [vector] = [item.embedding for item in one.data]
        assert one.model == self.model and one.usage.total_tokens == one.usage.prompt_tokens > 2
        assert abs(math.sqrt(sum(x * x for x in vector)) - 1) < 1e-5
        # The client asks for base64 unless it is told otherwise.
        near = lambda a, b: len(a) == len(b) and all(math.isclose(x, y, abs_tol=1e-6) for x, y in zip(a, b))
        assert near(self.embed("Once upon a time", encoding_format="float").data[0].embedding, vector)
        raw = self.embed("Once upon a time", encoding_format="base64").data[0].embedding
        assert isinstance(raw, str)
        several = self.embed(["Elsewhere", "Once upon a time"])
        assert [item.index for item in several.data] == [0, 1] and several.data[1].embedding == vector
        assert several.data[0].embedding != vector
        ids = self.embed([10, 11, 12])
        assert ids.usage.prompt_tokens == 3 and self.embed([[13], [10, 11, 12]]).data[1].embedding == ids.data[0].embedding
        short = self.embed("Once upon a time", dimensions=8).data[0].embedding
        scale = math.sqrt(sum(x * x for x in vector[:8]))
        assert near(short, [x / scale for x in vector[:8]])
        tuned = self.client.embeddings.create(model=self.adapter, input="Once upon a time")
        assert tuned.data[0].embedding != vector
        for fields in ({"dimensions": 0}, {"dimensions": 65}, {"encoding_format": "int8"}):
            refused(lambda: self.embed("x", **fields), BAD, next(iter(fields)))
        for input in ("", [], [[]], [99999], "word " * 5000):
            refused(lambda: self.embed(input), BAD, "input")
        refused(lambda: self.embed("x", extra_body={"truncate": 1}), BAD, "truncate")


if __name__ == "__main__":
    run(Tests(*sys.argv[1:]))
