"""Rows about completions."""

import openai
from openai_calls import ON, call, refused


def text(chunks):
    return "".join(chunk.choices[0].text for chunk in chunks if chunk.choices)


@call("completion")
def _(t):
    answer = t.complete(temperature=0)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.choices[0].text and answer.choices[0].finish_reason == "length"
    default = t.client.completions.create(model=t.model, prompt="x", extra_body=ON)
    assert default.usage.completion_tokens == 16, "OpenAI's default length"


@call("completion, stream")
def _(t):
    chunks = list(t.complete(temperature=0, stream=True, stream_options={"include_usage": True}))
    assert text(chunks) == t.complete(temperature=0).choices[0].text
    assert chunks[-1].usage.completion_tokens == 12 and chunks[-2].choices[0].finish_reason == "length"


@call("completion, several prompts, n")
def _(t):
    several = t.complete(["Once upon a time", "Elsewhere"], n=2, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == t.complete(temperature=0).choices[0].text
    assert several.usage.completion_tokens == 48


@call("completion, prompts of token ids")
def _(t):
    ids = t.complete([10, 11, 12], temperature=0)
    assert ids.usage.prompt_tokens == 3
    lists = t.complete([[10, 11, 12], [13]], temperature=0)
    assert lists.choices[0].text == ids.choices[0].text and lists.usage.prompt_tokens == 4


@call("completion, stop")
def _(t):
    whole = t.complete(temperature=0, max_tokens=40).choices[0].text
    stop = whole[10:13]
    cut = whole[: whole.index(stop)]
    choice = t.complete(temperature=0, max_tokens=40, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (cut, "stop", stop)
    chunks = list(t.complete(temperature=0, max_tokens=40, stop=[stop], stream=True))
    assert text(chunks) == cut and chunks[-1].choices[0].finish_reason == "stop"


@call("completion, include_stop_str_in_output")
def _(t):
    whole = t.complete(temperature=0, max_tokens=40).choices[0].text
    stop = whole[10:13]
    kept = t.complete(temperature=0, max_tokens=40, stop=stop, extra={"include_stop_str_in_output": True})
    assert kept.choices[0].text == whole[: whole.index(stop)] + stop


@call("completion, stop_token_ids")
def _(t):
    stopped = t.complete(temperature=0, extra={"stop_token_ids": list(range(3, 320))}).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("", "stop"), stopped


@call("completion, allowed_token_ids")
def _(t):
    tokens = lambda ids: t.complete(temperature=1, seed=1, logprobs=0, extra={"allowed_token_ids": ids}).choices[0].logprobs.tokens
    [a], [b] = set(tokens([70])), set(tokens([71]))
    assert a != b and set(tokens([70, 71])) == {a, b} and len(tokens([70, 71])) == 12
    for wrong in ([], [10**6], "a"):
        refused(lambda: t.complete(extra={"allowed_token_ids": wrong}), param="allowed_token_ids")


@call("completion, bad_words")
def _(t):
    tokens = lambda **extra: t.complete(temperature=0, max_tokens=24, logprobs=0, extra=extra).choices[0].logprobs.tokens
    free = tokens()
    first = next(token for token in free if token.isalnum())
    assert first not in tokens(bad_words=[first]) and free[: free.index(first)] == tokens(bad_words=[first])[: free.index(first)]
    refused(lambda: t.complete(extra={"bad_words": [" "]}), param="bad_words")


@call("completion, logprobs")
def _(t):
    logprobs = t.complete(temperature=0, logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 12
    assert logprobs.text_offset[0] == 0 and logprobs.text_offset == sorted(logprobs.text_offset)
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
        assert top[token] == logprob
    refused(lambda: t.complete(logprobs=21), param="logprobs")


@call("completion, best_of")
def _(t):
    answer = t.complete(seed=3, best_of=4, n=2, logprobs=0)
    assert len(answer.choices) == 2 and answer.usage.completion_tokens == 48
    mean = lambda choice: sum(choice.logprobs.token_logprobs) / 12
    everything = t.complete(seed=3, n=4, logprobs=0).choices
    best = sorted(everything, key=mean, reverse=True)[:2]
    assert [choice.text for choice in answer.choices] == [choice.text for choice in best]
    assert answer.choices[0].logprobs and t.complete(seed=3, best_of=4).choices[0].logprobs is None
    refused(lambda: t.complete(best_of=1, n=2), param="best_of")
    refused(lambda: t.complete(best_of=2, stream=True), param="best_of")


@call("completion, echo")
def _(t):
    plain = t.complete(temperature=0).choices[0].text
    assert t.complete(temperature=0, echo=True).choices[0].text == "Once upon a time" + plain
    chunks = list(t.complete(temperature=0, echo=True, stream=True, stream_options={"include_usage": True}))
    assert text(chunks) == "Once upon a time" + plain and chunks[-1].usage.completion_tokens == 12


@call("completion, echo and logprobs")
def _(t):
    answer = t.complete(temperature=0, echo=True, logprobs=1)
    found, prompt = answer.choices[0].logprobs, answer.usage.prompt_tokens
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == prompt + 12
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert all(logprob <= 0 for logprob in found.token_logprobs[1:])
    assert "".join(found.tokens) == answer.choices[0].text and found.text_offset[prompt] == len("Once upon a time")
    # The same answer, prompt and all, in pieces; and the tokens as a prompt score as they did as an answer.
    chunks = list(t.complete(temperature=0, echo=True, logprobs=1, stream=True))
    pieces = [p for chunk in chunks if chunk.choices[0].logprobs for p in chunk.choices[0].logprobs.token_logprobs]
    assert pieces == found.token_logprobs
    again = t.complete(answer.choices[0].text, echo=True, logprobs=0, max_tokens=1).choices[0].logprobs
    if again.tokens[:-1] == found.tokens:
        near = zip(again.token_logprobs[1:-1], found.token_logprobs[1:])
        assert all(abs(a - b) < 1e-3 for a, b in near)


@call("completion, echo of max_tokens 0")
def _(t):
    scored = t.complete(echo=True, logprobs=1, max_tokens=0)
    choice = scored.choices[0]
    assert choice.text == "Once upon a time" and len(choice.logprobs.tokens) == scored.usage.prompt_tokens
    assert scored.usage.completion_tokens == 0 and choice.finish_reason == "length"
    refused(lambda: t.complete(max_tokens=0), param="max_tokens")


@call("completion, prompt_logprobs")
def _(t):
    choices = t.complete([[20, 21, 22, 23], [10, 11, 12]], extra={"prompt_logprobs": 1}).choices
    assert [len(choice.prompt_logprobs) for choice in choices] == [4, 3]
    assert all(choice.prompt_logprobs[0] is None for choice in choices)
    chosen = choices[1].prompt_logprobs[1]["11"]
    assert chosen["logprob"] <= 0 and chosen["decoded_token"]
    echoed = t.complete([10, 11, 12], echo=True, logprobs=0).choices[0].logprobs
    assert echoed.token_logprobs[1] == chosen["logprob"] and echoed.tokens[1] == chosen["decoded_token"]


@call("completion, context length")
def _(t):
    refused(lambda: t.complete("word " * 5000), param="prompt", code="context_length_exceeded")


@call("completion, adapter and unknown model")
def _(t):
    assert t.complete(model=t.adapter).model == t.adapter
    refused(lambda: t.complete(model="nobody"), openai.NotFoundError, code="model_not_found")
