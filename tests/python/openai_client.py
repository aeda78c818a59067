"""Calls running servers with OpenAI's own client.

    openai_client.py all PLACES     a table of calls, on tiny random models; PLACES: JSON, see `Servers`
    openai_client.py talk URL       a conversation with a real model
"""

import json
import sys
import traceback

import openai
import openai_chat  # noqa: F401  the modules fill the table
import openai_server  # noqa: F401
import openai_structured  # noqa: F401
import openai_text  # noqa: F401
import openai_tools  # noqa: F401
from openai_calls import TABLE, Servers


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
    paris = {"echo": True, "logprobs": 0, "max_tokens": 0}
    likely, unlikely = (
        client.completions.create(model=model, prompt=f"The capital of France is {city}", **paris).choices[0].logprobs
        for city in ("Paris", "Oslo")
    )
    assert likely.token_logprobs[-1] > unlikely.token_logprobs[-1], (likely, unlikely)
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": {
        "type": "object", "properties": {"capital": {"type": "string", "maxLength": 20}}, "required": ["capital"],
        "additionalProperties": False}}}
    formed = client.chat.completions.create(model=model, messages=question, temperature=0, response_format=form)
    assert "Paris" in json.loads(formed.choices[0].message.content)["capital"], formed
    print("ok talk:", answer.choices[0].message.content)


def run_all(places):
    servers = Servers(json.loads(places))
    failed = 0
    for number, (name, run) in enumerate(TABLE, 1):
        try:
            run(servers)
            print(f"{number:3} ok      {name}")
        except Exception:  # one failure must not hide the others
            traceback.print_exc(file=sys.stdout)
            print(f"{number:3} FAILED  {name}")
            failed += 1
    print(f"{len(TABLE) - failed} of {len(TABLE)} calls ok")
    assert len(TABLE) >= 40
    sys.exit(failed > 0)


if __name__ == "__main__":
    {"talk": talk, "all": run_all}[sys.argv[1]](*sys.argv[2:])
