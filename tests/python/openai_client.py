"""Calls a running server with OpenAI's own client.

    openai_client.py all URL MODEL ADAPTER LOCKED_URL KEY     every feature, on a tiny random model
    openai_client.py talk URL                                 a conversation with a real model
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import openai

CHAT = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say something."}]
# A random model may end its answer at any token.
ON = {"ignore_eos": True}


class Tests:
    def __init__(self, url, model, adapter, locked_url, key):
        self.client = openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0)
        self.url, self.model, self.adapter, self.locked_url, self.key = url, model, adapter, locked_url, key

    def chat(self, messages=CHAT, extra=None, **fields):
        fields = {"model": self.model, "max_tokens": 12, **fields}
        return self.client.chat.completions.create(messages=messages, extra_body={**ON, **(extra or {})}, **fields)

    def complete(self, prompt="Once upon a time", extra=None, **fields):
        fields = {"model": self.model, "max_tokens": 12, **fields}
        return self.client.completions.create(prompt=prompt, extra_body={**ON, **(extra or {})}, **fields)

    def refused(self, call, kind=openai.BadRequestError, param=None, code=None, says=""):
        try:
            call()
        except kind as error:
            assert param is None or error.param == param, f"param {error.param!r}, not {param!r}: {error}"
            assert code is None or error.code == code, f"code {error.code!r}, not {code!r}: {error}"
            assert says in str(error), error
            return
        raise AssertionError(f"not refused with {kind.__name__}")

    def test_models(self):
        ids = [model.id for model in self.client.models.list()]
        assert ids == [self.model, "org/tiny", self.adapter], ids
        assert self.client.models.retrieve(self.adapter).parent == self.model
        assert self.client.models.retrieve("org/tiny").id == "org/tiny"
        self.refused(lambda: self.client.models.retrieve("nobody"), openai.NotFoundError, code="model_not_found")

    def test_chat(self):
        answer = self.chat(temperature=0)
        choice = answer.choices[0]
        assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.created > 1.6e9
        assert answer.model == self.model and choice.message.role == "assistant" and choice.message.content
        assert choice.finish_reason == "length" and choice.logprobs is None
        usage = answer.usage
        assert usage.completion_tokens == 12 and usage.prompt_tokens > 10
        assert usage.total_tokens == usage.prompt_tokens + 12
        # Greedy, whatever the way the length is stated.
        again = self.chat(temperature=0, max_tokens=openai.omit, max_completion_tokens=12)
        assert again.choices[0].message.content == choice.message.content

    def test_chat_stream(self):
        whole = self.chat(temperature=0).choices[0].message.content
        chunks = list(self.chat(temperature=0, stream=True, stream_options={"include_usage": True}))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk.id for chunk in chunks}) == 1
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
        assert all(chunk.usage is None for chunk in self.chat(stream=True)), "usage only when asked for"

    def test_chat_n(self):
        answer = self.chat(n=3, seed=7)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        texts = [choice.message.content for choice in answer.choices]
        assert len(set(texts)) == 3, texts
        assert answer.usage.completion_tokens == 36
        one = self.chat(seed=8)
        assert one.choices[0].message.content == texts[1], "choice i has the seed + i"
        assert one.usage.prompt_tokens == answer.usage.prompt_tokens
        streamed = ["", "", ""]
        for chunk in self.chat(n=3, seed=7, stream=True):
            streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert streamed == texts

    def test_seed(self):
        first, second, other = (self.chat(seed=seed).choices[0].message.content for seed in (5, 5, 6))
        assert first == second and first != other
        assert self.chat(seed=-1).choices[0].message.content

    def test_stop(self):
        whole = self.complete(temperature=0, max_tokens=40).choices[0].text
        stop = whole[10:13]
        cut = whole[: whole.index(stop)]
        choice = self.complete(temperature=0, max_tokens=40, stop=stop).choices[0]
        assert (choice.text, choice.finish_reason, choice.stop_reason) == (cut, "stop", stop)
        choice = self.complete(temperature=0, max_tokens=40, stop=["never ever", stop]).choices[0]
        assert (choice.text, choice.finish_reason) == (cut, "stop")
        chunks = list(self.complete(temperature=0, max_tokens=40, stop=[stop], stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == cut
        assert chunks[-1].choices[0].finish_reason == "stop"
        kept = self.complete(temperature=0, max_tokens=40, stop=stop, extra={"include_stop_str_in_output": True})
        assert kept.choices[0].text == cut + stop
        self.refused(lambda: self.chat(stop=""), param="stop")

    def test_stop_token_ids(self):
        tokens = self.complete(temperature=0, logprobs=0).choices[0].logprobs.tokens
        # Every byte is a token, so the model's own first single-character ASCII token can be named.
        assert tokens
        stopped = self.complete(temperature=0, extra={"stop_token_ids": list(range(3, 320))}).choices[0]
        assert (stopped.text, stopped.finish_reason) == ("", "stop"), stopped

    def test_completions(self):
        answer = self.complete(temperature=0)
        assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
        assert answer.choices[0].text and answer.choices[0].finish_reason == "length"
        default = self.client.completions.create(model=self.model, prompt="x", extra_body=ON)
        assert default.usage.completion_tokens == 16, "OpenAI's default length"
        several = self.complete(["Once upon a time", "Elsewhere"], n=2, temperature=0)
        assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
        assert several.choices[0].text == several.choices[1].text == answer.choices[0].text
        assert several.usage.completion_tokens == 48
        ids = self.complete([10, 11, 12], temperature=0)
        assert ids.usage.prompt_tokens == 3
        lists = self.complete([[10, 11, 12], [13]], temperature=0)
        assert lists.choices[0].text == ids.choices[0].text and lists.usage.prompt_tokens == 4
        echoed = self.complete(temperature=0, echo=True)
        assert echoed.choices[0].text == "Once upon a time" + answer.choices[0].text
        chunks = list(self.complete(temperature=0, echo=True, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].text for c in chunks if c.choices) == echoed.choices[0].text
        assert chunks[-1].usage.completion_tokens == 12

    def test_chat_logprobs(self):
        answer = self.chat(temperature=0, logprobs=True, top_logprobs=3).choices[0]
        content = answer.logprobs.content
        assert len(content) == 12
        for token in content:
            assert token.logprob <= 0 and len(token.top_logprobs) == 3
            assert token.top_logprobs[0].token == token.token and token.top_logprobs[0].logprob == token.logprob
        text = b"".join(bytes(token.bytes) for token in content).decode(errors="replace")
        assert answer.message.content in text
        streamed = []
        for chunk in self.chat(temperature=0, logprobs=True, stream=True):
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content
        assert [token.token for token in streamed] == [token.token for token in content]
        assert all(token.top_logprobs == [] for token in streamed)
        self.refused(lambda: self.chat(top_logprobs=2), param="top_logprobs")
        self.refused(lambda: self.chat(logprobs=True, top_logprobs=21), param="top_logprobs")

    def test_completion_logprobs(self):
        choice = self.complete(temperature=0, logprobs=2).choices[0]
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 12
        assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            assert top[token] == logprob

    def test_sampling_fields(self):
        greedy = self.chat(temperature=0).choices[0].message.content
        for extra in ({"top_k": 1}, {"min_p": 1.0}):
            assert self.chat(extra=extra).choices[0].message.content == greedy, extra
        assert self.chat(top_p=1e-6).choices[0].message.content == greedy
        self.chat(presence_penalty=1, frequency_penalty=-1, extra={"repetition_penalty": 1.2, "top_k": -1, "min_tokens": 3})
        biased = self.complete(temperature=0, logit_bias={"70": 100}, logprobs=0).choices[0].logprobs.tokens
        assert len(set(biased)) == 1, biased
        for field, value in (("temperature", 3), ("top_p", 0), ("presence_penalty", 2.5), ("n", 0), ("max_tokens", 0)):
            self.refused(lambda: self.chat(**{field: value}), param=field)
        for extra in ({"top_k": -2}, {"min_p": 2}, {"repetition_penalty": 0}, {"min_tokens": 13}):
            self.refused(lambda: self.chat(extra=extra), param=next(iter(extra)))
        self.refused(lambda: self.chat(logit_bias={"999999": 1}), param="logit_bias")

    def test_messages(self):
        plain = self.chat(temperature=0, messages=[{"role": "user", "content": "a\nb"}])
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        joined = self.chat(temperature=0, messages=[{"role": "user", "content": parts}])
        assert joined.choices[0].message.content == plain.choices[0].message.content
        image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
        self.refused(lambda: self.chat(messages=[{"role": "user", "content": image}]), says="image_url")
        self.refused(lambda: self.chat(messages=[]), param="messages")
        self.refused(lambda: self.chat(messages=[{"role": "user"}]), param="messages[0].content")
        start = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, "}]
        longer = {"continue_final_message": True}
        assert self.chat(messages=start, extra=longer).usage.prompt_tokens < self.chat(messages=start).usage.prompt_tokens
        self.refused(lambda: self.chat(messages=start, extra={**longer, "add_generation_prompt": True}))
        assert self.chat(extra={"chat_template_kwargs": {"add_generation_prompt": True}}).choices

    def test_tools(self):
        """A random model calls nothing by itself; forced calls are in test_forced_calls."""
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        plain = self.chat(temperature=0)
        for choice in ("none", "auto"):
            answer = self.chat(temperature=0, tools=[tool], tool_choice=choice)
            assert answer.choices[0].message.content and answer.choices[0].message.tool_calls is None
            assert answer.usage.prompt_tokens > plain.usage.prompt_tokens, "the model sees the tools"
        chunks = list(self.chat(temperature=0, tools=[tool], stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
        call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        history = CHAT + [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        ]
        assert self.chat(messages=history, tools=[tool]).usage.prompt_tokens > answer.usage.prompt_tokens
        self.refused(lambda: self.chat(tools=[{"type": "web_search"}]), param="tools[0]")
        self.refused(lambda: self.chat(tools=[tool], tool_choice="sometimes"), param="tool_choice")
        other = {"type": "function", "function": {"name": "g"}}
        self.refused(lambda: self.chat(tools=[tool], tool_choice=other), param="tool_choice", says="'g'")
        self.refused(lambda: self.chat(tool_choice="required"), param="tool_choice")

    def test_best_of(self):
        answer = self.complete(seed=3, best_of=4, n=2, logprobs=0)
        assert len(answer.choices) == 2 and answer.usage.completion_tokens == 48
        mean = lambda choice: sum(choice.logprobs.token_logprobs) / 12
        assert mean(answer.choices[0]) >= mean(answer.choices[1])
        everything = self.complete(seed=3, n=4, logprobs=0).choices
        best = sorted(everything, key=mean, reverse=True)[:2]
        assert [choice.text for choice in answer.choices] == [choice.text for choice in best]
        assert answer.choices[0].logprobs and self.complete(seed=3, best_of=4).choices[0].logprobs is None
        self.refused(lambda: self.complete(best_of=1, n=2), param="best_of")
        self.refused(lambda: self.complete(best_of=2, stream=True), param="best_of")

    def test_usage_in_every_chunk(self):
        options = {"include_usage": True, "continuous_usage_stats": True}
        usages = [chunk.usage for chunk in self.chat(stream=True, stream_options=options)]
        counts = [usage.completion_tokens for usage in usages]
        assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == 12, counts
        assert all(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens for usage in usages)
        text = [chunk.usage for chunk in self.complete(stream=True, stream_options=options)]
        assert text[-1].completion_tokens == 12 and text[0].prompt_tokens > 0

    def test_unsupported(self):
        assert self.chat(response_format={"type": "text"}).choices
        self.refused(lambda: self.chat(response_format={"type": "xml"}), param="response_format")
        self.refused(lambda: self.chat(reasoning_effort="high"), param="reasoning_effort")
        self.refused(lambda: self.complete(suffix="end"), param="suffix")
        self.refused(lambda: self.complete(echo=True, logprobs=1), param="echo")
        self.refused(lambda: self.chat(extra={"temprature": 1}), param="temprature", says="temprature")
        assert self.chat(user="me", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="x").choices

    def test_context_length(self):
        code = "context_length_exceeded"
        self.refused(lambda: self.chat(max_tokens=100_000), param="messages", code=code)
        self.refused(lambda: self.complete("word " * 5000), param="prompt", code=code)
        rest = self.chat(max_tokens=openai.omit, temperature=0)
        limit = self.client.models.retrieve(self.model).max_model_len
        assert rest.usage.total_tokens == limit and rest.choices[0].finish_reason == "length", rest.usage

    def test_model_and_keys(self):
        self.refused(lambda: self.chat(model="nobody"), openai.NotFoundError, param="model", code="model_not_found")
        self.refused(lambda: self.complete(model="nobody"), openai.NotFoundError, code="model_not_found")
        for key in ("EMPTY", "secre", "secret2", "Secret"):
            locked = openai.OpenAI(base_url=self.locked_url, api_key=key, max_retries=0)
            self.refused(lambda: locked.models.list(), openai.AuthenticationError, code="invalid_api_key")
            call = lambda: locked.chat.completions.create(model=self.model, messages=CHAT)
            self.refused(call, openai.AuthenticationError, code="invalid_api_key")
        for key in (self.key, "other"):
            assert openai.OpenAI(base_url=self.locked_url, api_key=key).models.list().data

    def test_adapter(self):
        base = self.chat(temperature=0, logprobs=True)
        tuned = self.chat(temperature=0, logprobs=True, model=self.adapter)
        assert tuned.model == self.adapter
        values = lambda answer: [token.logprob for token in answer.choices[0].logprobs.content]
        assert values(base) != values(tuned) or base.choices[0].message.content != tuned.choices[0].message.content

    def test_concurrency(self):
        """Same seed, same text, whatever else is being served."""
        call = lambda i: self.chat(seed=i, max_tokens=30, model=(self.model, self.adapter)[i % 2]).choices[0].message.content
        alone = [call(i) for i in range(8)]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(call, list(range(8)) * 2))
        assert together == alone * 2

    def test_abandoned_stream(self):
        stream = self.chat(stream=True, max_tokens=200)
        next(iter(stream))
        stream.close()
        assert self.chat().choices


def talk(url):
    client = openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0)
    model = client.models.list().data[0].id
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    answer = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=16)
    assert "Paris" in answer.choices[0].message.content and answer.choices[0].finish_reason == "stop", answer
    chunks = client.chat.completions.create(model=model, messages=question, temperature=0, max_tokens=16, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == answer.choices[0].message.content
    story = client.completions.create(model=model, prompt="1, 2, 3, 4,", temperature=0, max_tokens=24, stop=["7"])
    assert story.choices[0].text == " 5, 6, " and story.choices[0].finish_reason == "stop", story
    print("ok talk:", answer.choices[0].message.content)


def run_all(arguments):
    tests = Tests(*arguments)
    failed = 0
    for name in [name for name in dir(tests) if name.startswith("test_")]:
        try:
            getattr(tests, name)()
            print("ok", name)
        except Exception as error:  # one failure must not hide the others
            import traceback

            traceback.print_exc(file=sys.stdout)
            print("FAILED", name, repr(error))
            failed += 1
    sys.exit(failed > 0)


if __name__ == "__main__":
    if sys.argv[1] == "talk":
        talk(*sys.argv[2:])
    else:
        run_all(sys.argv[2:])
