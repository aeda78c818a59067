"""Teaches a model one sentence while it goes on talking: learn.py MODEL"""

import sys

from runtime_engine import Engine

with Engine(backend="cpu") as engine:
    model = engine.load(sys.argv[1])
    session = model.session()
    session.append_text("Hello")
    print("before:", "Hello" + session.generate(max_tokens=8).text())
    job = model.training(max_steps=30, rank=8, learning_rate=2e-2, batch_size=1, grad_accum=1, warmup_steps=-1)
    job.add_example({"prompt": "Hello", "completion": " world, this is what was learned"})
    job.start()
    losses = [event.loss for event in job.steps()]
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    session.rewind(0)
    session.set_adapters(job.snapshot())
    session.append_text("Hello")
    print("after: ", "Hello" + session.generate(max_tokens=8).text())
