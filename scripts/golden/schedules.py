"""transformers' learning-rate schedules, step by step.

Writes  tests/golden/sft/schedules.json: for each case its settings and the rate of every optimizer step.
Rerun   python scripts/golden/schedules.py   (seconds)
"""

import torch
from transformers import get_scheduler

from common import GOLDEN, versions, write_json

CASES = [  # name in transformers, warm-up, steps, lr, further settings
    ("linear", 5, 50, 2e-4, {}),
    ("linear", 0, 7, 1e-3, {}),
    ("cosine", 5, 50, 2e-4, {}),
    ("cosine", 3, 20, 1e-3, {"num_cycles": 1.5}),
    ("cosine_with_restarts", 5, 50, 2e-4, {}),
    ("cosine_with_restarts", 2, 40, 1e-3, {"num_cycles": 3}),
    ("constant", 5, 20, 2e-4, {}),
    ("constant_with_warmup", 5, 20, 2e-4, {}),
    ("inverse_sqrt", 5, 50, 2e-4, {}),
    ("inverse_sqrt", 0, 10, 2e-4, {}),
    ("polynomial", 5, 50, 2e-4, {}),
    ("polynomial", 4, 30, 1e-3, {"power": 2.0, "lr_end": 1e-5}),
]


def main():
    cases = []
    for name, warmup, steps, lr, more in CASES:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
        schedule = get_scheduler(name, optimizer, warmup, steps, scheduler_specific_kwargs=more)
        rates = []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        cases.append({"schedule": name, "warmup_steps": warmup, "total_steps": steps, "lr": lr, **more, "rates": rates})
    write_json(GOLDEN / "sft" / "schedules.json", {"versions": versions(), "cases": cases})


if __name__ == "__main__":
    main()
