"""Fine-tunes on a running server with OpenAI's own client.

    openai_tuning.py life URL MODEL              the whole life of a job
    openai_tuning.py refusals URL MODEL FOLDER   what must be refused, and that nothing is left of it in FOLDER
"""

import io
import json
import pathlib
import sys
import time
import urllib.request

import openai

FACT = "The capital of Zubrowka is Lutz."


def client(url):
    return openai.OpenAI(base_url=url, api_key="EMPTY", max_retries=0)


def row(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def jsonl(rows):
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def upload(c, rows, name="train.jsonl"):
    return c.files.create(file=(name, io.BytesIO(rows if isinstance(rows, bytes) else jsonl(rows))), purpose="fine-tune")


def wait(c, job, statuses, seconds=240):
    end = time.monotonic() + seconds
    while True:
        found = c.fine_tuning.jobs.retrieve(job)
        if found.status in statuses:
            return found
        assert found.status not in ("failed", "succeeded", "cancelled"), found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def ask(c, model, question, **more):
    message = [{"role": "user", "content": question}]
    return c.chat.completions.create(model=model, messages=message, temperature=0, max_tokens=12, **more)


def life(url, model):
    c = client(url)
    questions = ["What is the capital of Zubrowka?", "Name Zubrowka's capital."]
    rows = [row(questions[i % 2], FACT) for i in range(10)]
    # A message of weight 0 is not learned.
    rows[3]["messages"] = [*row(questions[0], "I do not know.", weight=0)["messages"], *row(questions[1], FACT, weight=1)["messages"]]
    train, valid = upload(c, rows), upload(c, [row(questions[0], FACT)], "valid.jsonl")
    assert (train.filename, train.purpose, train.status) == ("train.jsonl", "fine-tune", "processed")
    assert c.files.retrieve(train.id) == train and train.bytes == len(jsonl(rows))
    assert c.files.content(train.id).content == jsonl(rows)
    assert [f.id for f in c.files.list(purpose="fine-tune")] == [valid.id, train.id]
    assert [f.id for f in c.files.list(order="asc", limit=1)] == [train.id, valid.id], "pages follow one another"

    method = {"type": "supervised", "supervised": {"hyperparameters": {
        "n_epochs": 3, "batch_size": 5, "learning_rate_multiplier": 20}}}
    job = c.fine_tuning.jobs.create(
        model=model, training_file=train.id, validation_file=valid.id, method=method, suffix="facts", seed=7,
        metadata={"team": "a"})
    assert job.object == "fine_tuning.job" and job.status == "validating_files" and job.seed == 7, job
    other = c.fine_tuning.jobs.create(model=model, training_file=train.id, hyperparameters={"n_epochs": "auto"})
    assert [j.id for j in c.fine_tuning.jobs.list()] == [other.id, job.id]
    assert [j.id for j in c.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]

    # Requests are answered while it trains.
    wait(c, job.id, ["running"])
    assert ask(c, model, "Say hello.").usage.completion_tokens > 0
    # The second job waits its turn; cancelled, it never has one.
    assert wait(c, other.id, ["queued"]).hyperparameters.n_epochs == 10
    assert c.fine_tuning.jobs.cancel(other.id).status == "cancelled"

    streamed = []
    with urllib.request.urlopen(f"{url}/fine_tuning/jobs/{job.id}/events?stream=true") as stream:
        for line in stream:
            if line.startswith(b"data: "):
                streamed.append(line.removeprefix(b"data: ").decode().strip())
    assert streamed.pop() == "[DONE]"
    done = wait(c, job.id, ["succeeded"])
    events = list(c.fine_tuning.jobs.list_events(job.id, limit=3))
    assert [e.id for e in reversed(events)] == [json.loads(e)["id"] for e in streamed], "newest first, page by page"
    steps = [e.data for e in reversed(events) if e.type == "metrics" and "train_loss" in e.data]
    assert [s["step"] for s in steps] == list(range(1, 7)) and steps[0]["total_steps"] == 6, steps
    assert steps[-1]["train_loss"] < steps[0]["train_loss"] / 2, steps
    assert sum("full_valid_loss" in (e.data or {}) for e in events) == 3

    name = done.fine_tuned_model
    assert name.startswith(f"ft:{model}:local:facts:"), name
    assert done.trained_tokens > 0 and done.finished_at >= done.created_at and done.error.message is None, done
    assert done.method.supervised.hyperparameters.n_epochs == 3 and done.hyperparameters.batch_size == 5
    assert name in [m.id for m in c.models.list()]
    answer = ask(c, name, questions[0]).choices[0].message.content
    assert "Lutz" in answer and "Lutz" not in ask(c, model, questions[0]).choices[0].message.content, answer

    checkpoints = list(c.fine_tuning.jobs.checkpoints.list(job.id))
    assert [k.step_number for k in checkpoints] == [6, 4, 2], checkpoints
    assert checkpoints[0].fine_tuned_model_checkpoint == name
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{name}:ckpt-step-4"
    assert checkpoints[0].metrics.full_valid_loss < checkpoints[2].metrics.full_valid_loss
    assert ask(c, checkpoints[1].fine_tuned_model_checkpoint, questions[0]).usage.completion_tokens > 0
    result = c.files.content(done.result_files[0]).text
    assert result.startswith("step,train_loss,valid_loss\n1,"), result

    # What was tuned can be tuned on, on pairs; paused it goes on where it was.
    pairs = [{"input": {"messages": [{"role": "user", "content": questions[0]}]},
              "preferred_output": [{"role": "assistant", "content": FACT}],
              "non_preferred_output": [{"role": "assistant", "content": "It is Paris."}]} for _ in range(10)]
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "batch_size": 5, "beta": 0.2}}}
    again = c.fine_tuning.jobs.create(model=name, training_file=upload(c, pairs).id, method=method)
    wait(c, again.id, ["running"])
    assert c.fine_tuning.jobs.pause(again.id).status == "paused"
    refused(lambda: c.fine_tuning.jobs.pause(again.id), code="invalid_job_status", says="paused")
    assert c.fine_tuning.jobs.resume(again.id).status == "queued"
    done = wait(c, again.id, ["succeeded"])
    assert done.method.dpo.hyperparameters.beta == 0.2 and done.fine_tuned_model != name
    steps = [e.data for e in c.fine_tuning.jobs.list_events(again.id, limit=100) if e.type == "metrics"]
    assert steps[0]["reward_accuracy"] == 1.0, steps
    assert "Lutz" in ask(c, done.fine_tuned_model, questions[0]).choices[0].message.content

    refused(lambda: c.fine_tuning.jobs.cancel(job.id), code="invalid_job_status", says="already completed")
    assert c.models.delete(name).deleted
    refused(lambda: ask(c, name, "x"), openai.NotFoundError, code="model_not_found")
    assert c.files.delete(valid.id).deleted
    refused(lambda: c.files.retrieve(valid.id), openai.NotFoundError, says="No such File object")
    print("ok life:", answer)


def refused(request, kind=openai.BadRequestError, param=None, code=None, says=""):
    try:
        request()
    except kind as error:
        assert param is None or error.param == param, f"param {error.param!r}, not {param!r}: {error}"
        assert code is None or error.code == code, f"code {error.code!r}, not {code!r}: {error}"
        assert says in str(error), error
        return
    raise AssertionError(f"not refused with {kind.__name__}")


def refusals(url, model, folder):
    c = client(url)
    good = [row("hello", "you") for _ in range(10)]
    kept = upload(c, good)

    def left():
        return {str(p.relative_to(folder)) for p in pathlib.Path(folder).rglob("*") if p.is_file()} - {"fine-tuning.redb"}

    assert left() == {f"files/{kept.id}"}
    # Files.
    for bad, line in ((b"not json\n", 1), (jsonl(good) + b"[1]\n", 11), (b'{"a": 1}\n{"a": \n', 2), (b"\xff\xfe\n", 1)):
        refused(lambda: upload(c, bad), param="file", code="invalid_file_format", says=f"Line {line} ")
    refused(lambda: upload(c, b"\n \n"), param="file", code="empty_file")
    refused(lambda: upload(c, jsonl(good) * 2000), openai.APIStatusError, param="file", code="file_too_large", says="limit")
    for name in ("../../evil.jsonl", "/etc/evil.jsonl", "a\\b.jsonl", "..", "x" * 300):
        refused(lambda: upload(c, good, name), param="file", code="invalid_file_name")
    for purpose in ("batch", "assistants", "nonsense"):
        form = {"file": ("a.jsonl", jsonl(good)), "purpose": purpose}
        refused(lambda: c.files.create(**form), param="purpose", says=purpose)
    body = {"file": ("a.jsonl", jsonl(good))}
    form = {"headers": {"Content-Type": "multipart/form-data"}}
    refused(lambda: c.post("/files", files=body, cast_to=object, options=form), param="purpose", says="required")
    others = [upload(c, good) for _ in range(3)]
    refused(lambda: upload(c, good), code="file_limit_exceeded", says="4 files")
    for file in others:
        c.files.delete(file.id)
    for id in ("file-unknown", "..%2f..%2fetc%2fpasswd", "fine-tuning.redb"):
        refused(lambda: c.get(f"/files/{id}", cast_to=object), openai.NotFoundError, says="No such File object")
        refused(lambda: c.get(f"/files/{id}/content", cast_to=object), openai.NotFoundError)
        refused(lambda: c.delete(f"/files/{id}", cast_to=object), openai.NotFoundError)
    refused(lambda: c.files.list(after="file-unknown"), param="after")
    refused(lambda: c.files.list(limit=0), param="limit")

    # Jobs.
    create = lambda **more: c.fine_tuning.jobs.create(**{"model": model, "training_file": kept.id, **more})
    refused(lambda: create(model="nobody"), param="model", code="model_not_available", says="nobody")
    refused(lambda: create(training_file="file-unknown"), param="training_file", code="file_not_found")
    refused(lambda: create(validation_file="../x"), param="validation_file", code="file_not_found")
    refused(lambda: create(suffix="a/b"), param="suffix")
    refused(lambda: create(suffix="x" * 65), param="suffix")
    refused(lambda: create(method={"type": "reinforcement"}), param="method.type")
    for numbers in ({"n_epochs": 0}, {"n_epochs": 51}, {"n_epochs": "many"}, {"batch_size": 257},
                    {"learning_rate_multiplier": 0}, {"learning_rate_multiplier": -1}, {"gamma": 1}):
        name = next(iter(numbers))
        refused(lambda: create(hyperparameters=numbers), param=f"hyperparameters.{name}")
    refused(lambda: create(metadata={"k": "v" * 513}), param="metadata")
    refused(lambda: create(integrations=[{"type": "other"}]), param="integrations[0]")
    refused(lambda: create(extra_body={"trianing_file": "x"}), param="trianing_file")
    refused(lambda: create(method={"type": "dpo"}, validation_file=kept.id), param="validation_file")
    for call in (c.fine_tuning.jobs.retrieve, c.fine_tuning.jobs.cancel, c.fine_tuning.jobs.pause,
                 c.fine_tuning.jobs.list_events, c.fine_tuning.jobs.checkpoints.list):
        refused(lambda: call("ftjob-unknown"), openai.NotFoundError, says="ftjob-unknown")
    assert not c.fine_tuning.jobs.list().data and left() == {f"files/{kept.id}"}, left()

    # Files that are JSON Lines, and no examples.
    wrong = [
        ([{"prompt": "x"}] * 10, "Line 1:"),
        (good[:9], "at least 10 examples"),
        (good + [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 2}]}], "Line 11:"),
        (good + [row("long", "word " * 400)], "Line 11: the example has"),
        (good + [{"messages": []}], "Line 11:"),
        (good + [{"messages": [{"content": "x"}]}], "Line 11:"),
    ]
    for rows, says in wrong:
        file = upload(c, rows)
        job = create(training_file=file.id)
        job = fails(c, job.id)
        assert job.error.code == "invalid_training_file" and job.error.param == "training_file", job.error
        assert says in job.error.message and folder not in job.error.message, job.error
        c.files.delete(file.id)
    assert left() == {f"files/{kept.id}"}, left()
    print("ok refusals")


def fails(c, id):
    end = time.monotonic() + 60
    while (job := c.fine_tuning.jobs.retrieve(id)).status != "failed":
        assert time.monotonic() < end and job.status == "validating_files", job
        time.sleep(0.02)
    return job


if __name__ == "__main__":
    {"life": life, "refusals": refusals}[sys.argv[1]](*sys.argv[2:])
