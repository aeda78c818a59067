"""Calls /v1/messages of a running server with Anthropic's own client.

    anthropic_client.py URL MODEL THINKING_URL LOCKED_URL KEY

THINKING_URL is a server that sets <think>…</think> apart, LOCKED_URL one that asks for KEY. URLs are without /v1.
"""

import sys

import anthropic
from client_tests import ON, refused, run

BAD = anthropic.BadRequestError
USER = [{"role": "user", "content": "Say something."}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"name": "weather", "description": "Tells the weather.", "input_schema": CITY}
# What a random model would not say by itself.
SCRIPT = r'<think>\n[a-d]{5}\n</think>\n\n[e-h]{5}(\n<tool_call>\n\{"name": "weather", "arguments": \{"city": "Oslo"\}\}\n</tool_call>){2}'


class Tests:
    def __init__(self, url, model, thinking_url, locked_url, key):
        client = lambda url: anthropic.Anthropic(base_url=url, api_key="EMPTY", max_retries=0)
        self.client, self.thinking = client(url), client(thinking_url)
        self.model, self.locked_url, self.key = model, locked_url, key

    def create(self, messages=USER, client=None, extra=None, **fields):
        fields = {"model": self.model, "max_tokens": 12, **fields}
        body = {**ON, "temperature": 0, **(extra or {})}
        return (client or self.client).messages.create(messages=messages, extra_body=body, **fields)

    def count(self, messages=USER, **fields):
        return self.client.messages.count_tokens(model=self.model, messages=messages, **fields).input_tokens

    def test_message(self):
        answer = self.create()
        assert (answer.type, answer.role, answer.model) == ("message", "assistant", self.model) and answer.id.startswith("msg_")
        assert (answer.stop_reason, answer.stop_sequence, answer.usage.output_tokens) == ("max_tokens", None, 12)
        [block] = answer.content
        assert block.type == "text" and block.text
        usage = self.create().usage
        assert usage.input_tokens + usage.cache_read_input_tokens == self.count()
        ended = self.create(extra={"stop_token_ids": list(range(3, 320))})
        assert (ended.stop_reason, ended.content) == ("end_turn", [])
        assert self.create(metadata={"user_id": "me"}, extra={"top_k": 1, "temperature": 1, "top_p": 1}).content == answer.content

    def test_prompts(self):
        """The system's and the user's words, as a string or in blocks, are the prompt that chat makes of them."""
        text = lambda *texts: [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in texts]
        assert self.count(system="a\nb") == self.count(system=text("a", "b")) > self.count()
        assert self.count([{"role": "user", "content": "a\nb"}]) == self.count([{"role": "user", "content": text("a", "b")}])
        # The answer goes on with what the last message begins.
        start = USER + [{"role": "assistant", "content": "One, "}]
        assert self.count(start) < self.count(start + USER) and self.create(start).content[0].text
        for messages, place in [
            ([], "messages"),
            ([{"role": "robot", "content": "x"}], "messages[0].role"),
            ([{"role": "user", "content": 7}], "messages[0].content"),
            ([{"role": "user", "content": [{"type": "image", "source": {}}]}], "messages[0].content[0]"),
            ([{"role": "user", "content": [{"type": "tool_result"}]}], "messages[0].content[0].tool_use_id"),
        ]:
            refused(lambda: self.create(messages), BAD, says=place)

    def test_stream(self):
        whole = self.create()
        with self.client.messages.stream(model=self.model, messages=USER, max_tokens=12, extra_body={**ON, "temperature": 0}) as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
            final = stream.get_final_message()
        assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 12)
        assert final.usage.input_tokens + final.usage.cache_read_input_tokens == self.count()
        events = [event.type for event in self.create(stream=True)]
        assert events[:2] == ["message_start", "content_block_start"], events
        assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"], events

    def test_stop_sequences(self):
        whole = self.create(max_tokens=40).content[0].text
        stop = whole[10:13]
        answer = self.create(max_tokens=40, stop_sequences=["never ever", stop])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
        assert answer.content[0].text == whole[: whole.index(stop)]
        events = list(self.create(max_tokens=40, stop_sequences=[stop], stream=True))
        assert events[-2].delta.stop_reason == "stop_sequence" and events[-2].delta.stop_sequence == stop

    def test_call(self):
        """Forced, since a random model calls nothing by itself; then its result goes back."""
        fields = {"tools": [WEATHER], "max_tokens": 300, "extra": {"ignore_eos": False}}
        for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
            answer = self.create(tool_choice=choice, **fields)
            [call] = answer.content
            assert answer.stop_reason == "tool_use" and call.type == "tool_use" and call.id.startswith("toolu_"), answer
            assert (call.name, call.input) == ("weather", {"city": "Oslo"})
        events = list(self.create(tool_choice=choice, stream=True, **fields))
        pieces = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
        assert len(pieces) > 1 and "".join(pieces).replace(" ", "").replace("\n", "") == '{"city":"Oslo"}'
        assert events[-2].delta.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
        asked = USER + [{"role": "assistant", "content": answer.content}]
        final = self.create(asked + [{"role": "user", "content": [result, {"type": "text", "text": "So?"}]}], tools=[WEATHER])
        assert final.content[0].type == "text" and self.count(tools=[WEATHER]) > self.count()
        refused(lambda: self.create(asked), BAD, says="results are missing")
        refused(lambda: self.create(tools=[{"type": "web_search_20250305", "name": "web_search"}]), BAD, says="tools[0]")
        refused(lambda: self.create(tools=[{"name": "f"}]), BAD, says="input_schema")
        refused(lambda: self.create(tools=[WEATHER], tool_choice={"type": "tool", "name": "g"}), BAD, says="'g'")
        none = self.create(tools=[WEATHER], tool_choice={"type": "none"})
        assert none.content[0].type == "text"

    def test_thinking_and_parallel_calls(self):
        fields = {"tools": [WEATHER], "max_tokens": 300, "client": self.thinking}
        fields["extra"] = {"structured_outputs": {"regex": SCRIPT}, "ignore_eos": False}
        answer = self.create(**fields)
        thought, text, *calls = answer.content
        assert (thought.type, len(thought.thinking), len(text.text)) == ("thinking", 5, 5), answer
        assert [call.input for call in calls] == [{"city": "Oslo"}] * 2 and answer.stop_reason == "tool_use"
        assert calls[0].id != calls[1].id
        body = {**ON, "temperature": 0, **fields["extra"]}
        fields = {"model": self.model, "messages": USER, "max_tokens": 300, "tools": [WEATHER]}
        with self.thinking.messages.stream(extra_body=body, **fields) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_message()
        assert events.count("content_block_start") == 4 and "thinking" in events and "input_json" in events
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert [block.thinking for block in final.content[:1]] == [thought.thinking] and final.content[1].text == text.text
        # It goes back as it came; an answer goes on from what was thought and said.
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"} for call in calls]
        history = USER + [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
        assert self.create(history, client=self.thinking).content
        assert self.create(thinking={"type": "adaptive"}).content and self.create(thinking={"type": "disabled"}).content
        budget = {"type": "enabled", "budget_tokens": 1024}
        assert self.create(thinking=budget, client=self.thinking).content
        refused(lambda: self.create(thinking=budget), BAD, says="thinking")

    def test_format(self):
        format = {"type": "json_schema", "schema": CITY}
        answer = self.create(output_config={"format": format}, max_tokens=100, extra={"ignore_eos": False})
        assert answer.content[0].text.replace(" ", "").replace("\n", "") == '{"city":"Oslo"}' and answer.stop_reason == "end_turn"
        refused(lambda: self.create(output_config={"effort": "high"}), BAD, says="output_config")

    def test_errors(self):
        error = refused(lambda: self.create(model="nobody"), anthropic.NotFoundError, says="nobody")
        assert error.body["type"] == "error" and error.body["error"]["type"] == "not_found_error", error.body
        error = refused(lambda: self.create([{"role": "user", "content": "word " * 5000}]), BAD, says="context length")
        assert error.body["error"]["type"] == "invalid_request_error", error.body
        for field, value in (("n", 2), ("max_completion_tokens", 3), ("container", "c"), ("response_format", {})):
            refused(lambda: self.create(extra={field: value}), BAD, says=field)
        refused(lambda: self.create(max_tokens=0), BAD, says="max_tokens")
        bare = {"model": self.model, "messages": USER}
        refused(lambda: self.client.post("/v1/messages", cast_to=object, body=bare), BAD, says="max_tokens")
        refused(lambda: self.create(stop_sequences=[""]), BAD, says="stop_sequences")
        refused(lambda: self.create(extra={"temperature": 3}), BAD, says="temperature")
        error = refused(lambda: self.client.post("/v1/messages/batch", cast_to=object, body={}), anthropic.NotFoundError)
        assert error.body["error"]["type"] == "not_found_error", error.body

    def test_keys(self):
        for key in ("EMPTY", "secre", "secret2"):
            locked = anthropic.Anthropic(base_url=self.locked_url, api_key=key, max_retries=0)
            error = refused(lambda: self.create(client=locked), anthropic.AuthenticationError)
            assert error.body["error"]["type"] == "authentication_error", error.body
        for given in ({"api_key": self.key}, {"auth_token": self.key}):
            assert self.create(client=anthropic.Anthropic(base_url=self.locked_url, **given)).content


if __name__ == "__main__":
    run(Tests(*sys.argv[1:]))
