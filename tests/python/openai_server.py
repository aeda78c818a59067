"""Rows about everything around answers: models, adapters, tokens, keys, refusals."""

import openai
from openai_calls import CHAT, call, content, refused


@call("models")
def _(t):
    ids = [model.id for model in t.client.models.list()]
    assert ids == [t.model, "org/tiny", t.adapter], ids


@call("models, one")
def _(t):
    assert t.client.models.retrieve(t.adapter).parent == t.model
    assert t.client.models.retrieve("org/tiny").id == "org/tiny"
    refused(lambda: t.client.models.retrieve("nobody"), openai.NotFoundError, code="model_not_found")


@call("served under two names")
def _(t):
    assert content(t.chat(model="org/tiny", temperature=0)) == content(t.chat(temperature=0))


@call("404 for an unknown model")
def _(t):
    refused(lambda: t.chat(model="nobody"), openai.NotFoundError, param="model", code="model_not_found")


@call("404 for an unknown endpoint")
def _(t):
    refused(lambda: t.client.images.generate(model=t.model, prompt="x"), openai.NotFoundError)


@call("401 for a wrong key")
def _(t):
    for key in ("EMPTY", "secre", "secret2", "Secret"):
        locked = t.of(t.locked, key)
        refused(lambda: locked.models.list(), openai.AuthenticationError, code="invalid_api_key")
        request = lambda: locked.chat.completions.create(model=t.model, messages=CHAT)
        refused(request, openai.AuthenticationError, code="invalid_api_key")
    for key in (t.key, "other"):
        assert t.of(t.locked, key).models.list().data


@call("429 when too many wait")
def _(t):
    refused(lambda: t.chat(at=t.full), openai.RateLimitError)
    refused(lambda: list(t.chat(at=t.full, stream=True)), openai.RateLimitError)


@call("400 for a field that nobody knows")
def _(t):
    refused(lambda: t.chat(extra={"temprature": 1}), param="temprature", says="temprature")
    refused(lambda: t.complete(extra={"echoes": 1}), param="echoes")


@call("400 for fields that are not supported")
def _(t):
    refused(lambda: t.complete(suffix="end"), param="suffix")
    for extra in ({"use_beam_search": True}, {"return_token_ids": True}, {"chat_template": "x"}, {"modalities": ["audio"]}):
        refused(lambda: t.chat(extra=extra), param=next(iter(extra)))


@call("fields without effect")
def _(t):
    plain = content(t.chat(temperature=0))
    fields = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "x"}
    assert content(t.chat(temperature=0, **fields)) == plain


@call("tokenize and detokenize")
def _(t):
    tokens = t.post("/tokenize", {"model": t.model, "prompt": "Hello there"})
    assert tokens["count"] == len(tokens["tokens"]) and tokens["max_model_len"] == 4096
    assert t.post("/detokenize", {"tokens": tokens["tokens"]}) == {"prompt": "Hello there"}
    assert t.complete(tokens["tokens"]).usage.prompt_tokens == tokens["count"]


@call("tokenize, messages")
def _(t):
    assert t.post("/tokenize", {"messages": CHAT})["count"] == t.chat().usage.prompt_tokens


@call("load and unload an adapter")
def _(t):
    load = {"lora_name": "late", "lora_path": t.folder}
    t.client.post("/load_lora_adapter", body=load, cast_to=str)
    assert content(t.chat(model="late", temperature=0)) == content(t.chat(model=t.adapter, temperature=0))
    refused(lambda: t.client.post("/load_lora_adapter", body=load, cast_to=str), param="lora_name")
    t.client.post("/unload_lora_adapter", body={"lora_name": "late"}, cast_to=str)
    refused(lambda: t.chat(model="late"), openai.NotFoundError, code="model_not_found")
