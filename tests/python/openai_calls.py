"""What the tables of calls share: the client, the servers, and the table itself."""

import openai

CHAT = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Say something."}]
# A random model may end its answer at any token.
ON = {"ignore_eos": True}

TABLE = []


def call(name):
    """Makes a function a row of the table."""

    def add(run):
        TABLE.append((name, run))
        return run

    return add


class Servers:
    """A tiny random model behind several servers, and shorthands for calls. `places`: `url`, `model` and `adapter`; `locked` with
    `key`; `llama` writes calls as Llama does; `thinking` has `<think>`; `full` has no room for anybody; `folder` of an adapter."""

    def __init__(self, places):
        self.__dict__.update(places)
        self.client = self.of(self.url)

    @staticmethod
    def of(url, key="EMPTY"):
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0)

    def chat(self, messages=CHAT, extra=None, at=None, **fields):
        client = self.of(at) if at else self.client
        fields = {"model": self.model, "max_tokens": 12, **fields}
        return client.chat.completions.create(messages=messages, extra_body={**ON, **(extra or {})}, **fields)

    def complete(self, prompt="Once upon a time", extra=None, **fields):
        fields = {"model": self.model, "max_tokens": 12, **fields}
        return self.client.completions.create(prompt=prompt, extra_body={**ON, **(extra or {})}, **fields)

    def post(self, path, body):
        """An endpoint that the client has no method for."""
        return self.of(self.url.removesuffix("/v1")).post(path, body=body, cast_to=object)


def refused(request, kind=openai.BadRequestError, param=None, code=None, says=""):
    try:
        request()
    except kind as error:
        assert param is None or error.param == param, f"param {error.param!r}, not {param!r}: {error}"
        assert code is None or error.code == code, f"code {error.code!r}, not {code!r}: {error}"
        assert says in str(error), error
        return
    raise AssertionError(f"not refused with {kind.__name__}")


def content(answer):
    return answer.choices[0].message.content


def streamed(chunks):
    """The text of a streamed chat."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
