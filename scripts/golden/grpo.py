"""tests/golden/grpo/loss.json: TRL's GRPO loss, and its derivative by autograd, on made-up log-probabilities.

The formula is not written down again here: it is TRL's own `GRPOTrainer._compute_loss`, which gets the log-probabilities in place of a
model's. One optimizer step takes the whole batch, as in `runtime grpo`.
"""

import collections
import json
import types
from pathlib import Path

import torch
from trl import GRPOConfig, GRPOTrainer
from trl import __version__ as trl_version

OUT = Path(__file__).parents[2] / "tests" / "golden" / "grpo" / "loss.json"
LENGTHS = [5, 3, 7, 1, 6, 4]
MOST = 9


class Accelerator:
    num_processes = 1

    def gather(self, x):
        return x

    def reduce(self, x, reduction):
        return x


def loss(config, now, inputs):
    """TRL's loss of a batch, and what it logs."""
    self = types.SimpleNamespace(
        args=config,
        beta=config.beta,
        epsilon_low=config.epsilon,
        epsilon_high=config.epsilon_high if config.epsilon_high is not None else config.epsilon,
        loss_type=config.loss_type,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        aux_loss_enabled=False,
        use_vllm=False,
        max_completion_length=MOST,
        current_gradient_accumulation_steps=1,
        accelerator=Accelerator(),
        model=types.SimpleNamespace(training=True),
        _entropy_bonus_enabled=False,
        _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (now, torch.zeros_like(now), None),
    )
    value = GRPOTrainer._compute_loss(self, None, inputs)
    metrics = {name: numbers[-1] for name, numbers in self._metrics["train"].items()}
    return value, metrics


def main():
    torch.manual_seed(7)
    count, width = len(LENGTHS), max(LENGTHS)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in LENGTHS])
    draw = lambda spread: (torch.randn(count, width) * spread).float()
    now = -draw(1.5).abs() - 0.05
    old, reference = now + draw(0.25), now + draw(0.4)
    advantages = torch.tensor([1.3, -0.7, 0.0, 0.4, -1.6, 0.9])
    rows = lambda x: [row[:n].tolist() for row, n in zip(x, LENGTHS)]
    cases = []
    for loss_type in ["grpo", "bnpo", "dr_grpo", "dapo"]:
        for beta, corrected in [(0.0, True), (0.04, True), (0.04, False)]:
            for epsilon, high, fresh in [(0.2, None, True), (0.2, None, False), (0.1, 0.28, False)]:
                config = GRPOConfig(
                    output_dir="/tmp/grpo",
                    loss_type=loss_type,
                    beta=beta,
                    use_bias_correction_kl=corrected,
                    epsilon=epsilon,
                    epsilon_high=high,
                    per_device_train_batch_size=count,
                    num_generations=2,
                    use_cpu=True,
                    bf16=False,
                )
                p = now.clone().requires_grad_()
                inputs = {
                    "prompt_ids": torch.zeros(count, 1, dtype=torch.long),
                    "prompt_mask": torch.ones(count, 1, dtype=torch.long),
                    "completion_ids": torch.zeros(count, width, dtype=torch.long),
                    "completion_mask": mask,
                    "advantages": advantages,
                    "ref_per_token_logps": reference,
                    "num_items_in_batch": mask.sum(),
                }
                if not fresh:
                    inputs["old_per_token_logps"] = old
                value, metrics = loss(config, p, inputs)
                value.backward()
                cases.append(
                    {
                        "loss_type": loss_type,
                        "beta": beta,
                        "use_bias_correction_kl": corrected,
                        "epsilon": epsilon,
                        "epsilon_high": high,
                        "fresh": fresh,
                        "loss": value.item(),
                        "kl": metrics.get("kl", 0.0),
                        "clip_ratio": metrics["clip_ratio/region_mean"],
                        # With respect to −log p.
                        "weights": rows(-p.grad),
                    }
                )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "trl": trl_version,
        "max_tokens": MOST,
        "advantages": advantages.tolist(),
        "now": rows(now),
        "old": rows(old),
        "reference": rows(reference),
        "cases": cases,
    }
    OUT.write_text(json.dumps(data) + "\n")
    print(f"{OUT}: {len(cases)} cases, TRL {trl_version}")


if __name__ == "__main__":
    main()
