"""Cost of a PPO update against the batch and against the response length; writes benchmarks/scaling.{json,png}.

    python benchmarks/scaling.py

GPT-2 124M with random weights, prompts of 32 tokens, one epoch, fp32 on a CPU.
One update each, after one that warms up.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from workload import prepare

from rlhf_utils.models import load_tokenizer
from rlhf_utils.plots.style import COLOURS, DPI, STYLE
from rlhf_utils.ppo import PPOConfig, PPOTrainer

HERE = Path(__file__).resolve().parent
BATCHES, RESPONSES = (2, 4, 8, 16), (12, 24, 48, 96)
BATCH, RESPONSE = 4, 32


def seconds(work: Path, batch: int, response: int) -> float:
    folder = work / "policy_fixed"
    config = PPOConfig(
        updates=1,
        rollout_batch_size=batch,
        minibatch_size=batch,
        microbatch_size=2,
        epochs=1,
        max_new_tokens=response,
        learning_rate=1e-6,
        save_every=10**6,
    )
    prompts = json.loads((work / "prompts.json").read_text())["fixed"]

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(response)) for response in responses]

    with tempfile.TemporaryDirectory() as output:
        return PPOTrainer(folder, load_tokenizer(folder), reward, prompts, config, output).train()[-1]["seconds"]


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, None)
        seconds(work, BATCHES[0], RESPONSES[0])
        found = {
            "batch": {batch: seconds(work, batch, RESPONSE) for batch in BATCHES},
            "response": {response: seconds(work, BATCH, response) for response in RESPONSES},
        }
    (HERE / "scaling.json").write_text(json.dumps(found, indent=2) + "\n")
    labels = {"batch": f"episodes, responses of {RESPONSE} tokens", "response": f"response tokens, {BATCH} episodes"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 3.4), dpi=DPI, layout="constrained", facecolor="white")
        for axes, (name, points) in zip(figure.subplots(1, 2), found.items(), strict=True):
            axes.plot(list(points), list(points.values()), marker="o", color=COLOURS["ppo"])
            axes.set(xlabel=labels[name], ylabel="seconds per update", xlim=(0, None), ylim=(0, None))
        figure.suptitle("Cost of one PPO update, GPT-2 124M, two CPU cores", x=0.01, ha="left", weight="bold")
        figure.savefig(HERE / "scaling.png")
    json.dump(found, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
