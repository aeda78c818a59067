"""Rows about chat: streams, counts, sampling, log-probabilities, messages."""

from concurrent.futures import ThreadPoolExecutor

import openai
from openai_calls import CHAT, call, content, refused, streamed


@call("chat")
def _(t):
    answer = t.chat(temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.created > 1.6e9
    assert answer.model == t.model and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length" and choice.logprobs is None
    usage = answer.usage
    assert usage.completion_tokens == 12 and usage.prompt_tokens > 10
    assert usage.total_tokens == usage.prompt_tokens + 12


@call("chat, max_completion_tokens")
def _(t):
    again = t.chat(temperature=0, max_tokens=openai.omit, max_completion_tokens=12)
    assert content(again) == content(t.chat(temperature=0))


@call("chat, stream")
def _(t):
    chunks = list(t.chat(temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"} and len({chunk.id for chunk in chunks}) == 1
    assert streamed(chunks) == content(t.chat(temperature=0))
    assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "length"]
    assert all(chunk.usage is None for chunk in chunks), "usage only when asked for"


@call("chat, stream_options include_usage")
def _(t):
    chunks = list(t.chat(temperature=0, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


@call("chat, stream_options continuous_usage_stats")
def _(t):
    options = {"include_usage": True, "continuous_usage_stats": True}
    usages = [chunk.usage for chunk in t.chat(stream=True, stream_options=options)]
    counts = [usage.completion_tokens for usage in usages]
    assert counts[0] == 0 and counts == sorted(counts) and counts[-1] == 12, counts
    assert all(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens for usage in usages)
    refused(lambda: t.chat(stream_options=options), param="stream_options")


@call("chat, cached tokens of the prompt")
def _(t):
    messages = [{"role": "user", "content": "cached? " * 20}]
    first, second = (t.chat(messages=messages).usage for _ in range(2))
    cached = second.prompt_tokens_details.cached_tokens
    assert first.prompt_tokens_details.cached_tokens < cached < second.prompt_tokens and cached > 64, (first, second)
    chunks = list(t.chat(messages=messages, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == cached
    assert t.complete("cached? " * 40).usage.prompt_tokens_details.cached_tokens == 0


@call("chat, n")
def _(t):
    answer = t.chat(n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3 and answer.usage.completion_tokens == 36, texts
    one = t.chat(seed=8)
    assert content(one) == texts[1], "choice i has the seed + i"
    assert one.usage.prompt_tokens == answer.usage.prompt_tokens


@call("chat, n, stream")
def _(t):
    texts = ["", "", ""]
    for chunk in t.chat(n=3, seed=7, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in t.chat(n=3, seed=7).choices]


@call("chat, seed")
def _(t):
    first, second, other = (content(t.chat(seed=seed)) for seed in (5, 5, 6))
    assert first == second and first != other
    assert content(t.chat(seed=-1))


@call("chat, temperature, top_p, top_k, min_p")
def _(t):
    greedy = content(t.chat(temperature=0))
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert content(t.chat(extra=extra)) == greedy, extra
    assert content(t.chat(top_p=1e-6)) == greedy
    for field, value in (("temperature", 3), ("top_p", 0), ("n", 0), ("max_tokens", 0)):
        refused(lambda: t.chat(**{field: value}), param=field)
    for extra in ({"top_k": -2}, {"min_p": 2}):
        refused(lambda: t.chat(extra=extra), param=next(iter(extra)))


@call("chat, penalties")
def _(t):
    repeated = t.complete(temperature=0, logit_bias={"70": 100}, max_tokens=4, logprobs=0).choices[0].logprobs.tokens
    assert len(set(repeated)) == 1
    varied = t.complete(temperature=0, logit_bias={"70": 1.5}, frequency_penalty=2, presence_penalty=2, logprobs=0)
    assert len(set(varied.choices[0].logprobs.tokens)) > 1
    assert t.chat(presence_penalty=1, frequency_penalty=-1, extra={"repetition_penalty": 1.2, "top_k": -1}).choices
    refused(lambda: t.chat(presence_penalty=2.5), param="presence_penalty")
    refused(lambda: t.chat(extra={"repetition_penalty": 0}), param="repetition_penalty")


@call("chat, logit_bias")
def _(t):
    biased = t.complete(temperature=0, logit_bias={"70": 100}, logprobs=0).choices[0].logprobs.tokens
    assert len(set(biased)) == 1, biased
    refused(lambda: t.chat(logit_bias={"999999": 1}), param="logit_bias")


@call("chat, min_tokens")
def _(t):
    end = {"2": 100}  # the model's own end of a turn
    assert t.chat(logit_bias=end, extra={"ignore_eos": False}).usage.completion_tokens == 1
    late = t.chat(logit_bias=end, extra={"ignore_eos": False, "min_tokens": 5})
    assert late.usage.completion_tokens == 6 and late.choices[0].finish_reason == "stop"
    refused(lambda: t.chat(extra={"min_tokens": 13}), param="min_tokens")


@call("chat, stop")
def _(t):
    whole = content(t.chat(temperature=0, max_tokens=40))
    stop = whole[10:13]
    choice = t.chat(temperature=0, max_tokens=40, stop=["never ever", stop]).choices[0]
    assert (choice.message.content, choice.finish_reason, choice.stop_reason) == (whole[: whole.index(stop)], "stop", stop)
    refused(lambda: t.chat(stop=""), param="stop")


@call("chat, priority")
def _(t):
    greedy = content(t.chat(temperature=0))
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: content(t.chat(temperature=0, extra={"priority": i - 4})), range(8)))
    assert texts == [greedy] * 8


@call("chat, logprobs and top_logprobs")
def _(t):
    answer = t.chat(temperature=0, logprobs=True, top_logprobs=3).choices[0]
    tokens = answer.logprobs.content
    assert len(tokens) == 12
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token and token.top_logprobs[0].logprob == token.logprob
    assert answer.message.content in b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace")
    refused(lambda: t.chat(top_logprobs=2), param="top_logprobs")
    refused(lambda: t.chat(logprobs=True, top_logprobs=21), param="top_logprobs")


@call("chat, logprobs, stream")
def _(t):
    whole = t.chat(temperature=0, logprobs=True).choices[0].logprobs.content
    tokens = []
    for chunk in t.chat(temperature=0, logprobs=True, stream=True):
        tokens += chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else []
    assert [token.token for token in tokens] == [token.token for token in whole]
    assert all(token.top_logprobs == [] for token in tokens)


@call("chat, prompt_logprobs")
def _(t):
    answer = t.chat(extra={"prompt_logprobs": 2})
    found = answer.prompt_logprobs
    assert len(found) == answer.usage.prompt_tokens and found[0] is None
    for entry in found[1:]:
        ranks = {token["rank"] for token in entry.values()}
        assert ranks in ({1, 2}, {1, 2, None}) and len(entry) in (2, 3) and all(token["logprob"] <= 0 for token in entry.values())
    assert "im_start" in str(list(t.chat(extra={"prompt_logprobs": 0}).prompt_logprobs[3:])), "decoded_token is its text"
    refused(lambda: t.chat(stream=True, extra={"prompt_logprobs": 1}), param="prompt_logprobs")
    refused(lambda: t.chat(extra={"prompt_logprobs": 21}), param="prompt_logprobs")


@call("chat, content in parts")
def _(t):
    plain = t.chat(temperature=0, messages=[{"role": "user", "content": "a\nb"}])
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert content(t.chat(temperature=0, messages=[{"role": "user", "content": parts}])) == content(plain)
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    refused(lambda: t.chat(messages=[{"role": "user", "content": image}]), says="image_url")


@call("chat, malformed messages")
def _(t):
    refused(lambda: t.chat(messages=[]), param="messages")
    refused(lambda: t.chat(messages=[{"role": "user"}]), param="messages[0].content")


@call("chat, developer is system")
def _(t):
    developer = [{**CHAT[0], "role": "developer"}, CHAT[1]]
    assert content(t.chat(temperature=0, messages=developer)) == content(t.chat(temperature=0))


@call("chat, continue_final_message")
def _(t):
    start = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, "}]
    longer = {"continue_final_message": True}
    assert t.chat(messages=start, extra=longer).usage.prompt_tokens < t.chat(messages=start).usage.prompt_tokens
    refused(lambda: t.chat(messages=start, extra={**longer, "add_generation_prompt": True}))


@call("chat, chat_template_kwargs")
def _(t):
    off = t.chat(extra={"chat_template_kwargs": {"add_generation_prompt": False}}).usage.prompt_tokens
    assert off < t.chat().usage.prompt_tokens
    refused(lambda: t.chat(extra={"chat_template_kwargs": []}), param="chat_template_kwargs")


@call("chat, adapter")
def _(t):
    base, tuned = (t.chat(temperature=0, logprobs=True, model=model) for model in (t.model, t.adapter))
    assert tuned.model == t.adapter
    values = lambda answer: [token.logprob for token in answer.choices[0].logprobs.content]
    assert values(base) != values(tuned) or content(base) != content(tuned)


@call("chat, 24 at once, two models")
def _(t):
    """Same seed, same text, whatever else is being served."""
    one = lambda i: content(t.chat(seed=i, max_tokens=30, model=(t.model, t.adapter)[i % 2]))
    alone = [one(i) for i in range(8)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, list(range(8)) * 3)) == alone * 3


@call("chat, abandoned stream")
def _(t):
    stream = t.chat(stream=True, max_tokens=200)
    next(iter(stream))
    stream.close()
    assert t.chat().choices


@call("chat, context length")
def _(t):
    code = "context_length_exceeded"
    refused(lambda: t.chat(max_tokens=100_000), param="messages", code=code)
    rest = t.chat(max_tokens=openai.omit, temperature=0)
    limit = t.client.models.retrieve(t.model).max_model_len
    assert rest.usage.total_tokens == limit and rest.choices[0].finish_reason == "length", rest.usage
