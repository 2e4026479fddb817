"""One PPO training in the embedded world, ours or trl's, from the same models; writes mean reward against seconds.

Needs a finished `make run`. Started by ppo_vs_trl.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from workload import reached  # also puts the repository on the path

from rlhf_utils.data import PreparedData
from rlhf_utils.runs.run import Run


class Enough(Exception):
    """The goal is reached."""


def ours(
    run: Run, prompts: list[str], updates: int, learning_rate: float, goal: float
) -> tuple[list[float], list[float]]:
    """The recipe's own settings, but for the learning rate."""
    from rlhf_utils.models.loading import load_tokenizer
    from rlhf_utils.platforms.runtime import detect_device
    from rlhf_utils.ppo import PPOTrainer
    from rlhf_utils.rewards import RewardModel

    changes = {"save_every": 10**6, "updates": updates, "learning_rate": learning_rate}
    config = run.recipe.ppo.model_copy(update=changes)
    times: list[float] = []
    rewards: list[float] = []

    def on_update(line: dict) -> None:
        times.append(time.perf_counter())
        rewards.append(line["reward"])
        if reached(rewards, goal) is not None:
            raise Enough

    with tempfile.TemporaryDirectory() as output:
        trainer = PPOTrainer(
            run.folder("sft"),
            load_tokenizer(run.folder("sft")),
            RewardModel.load(run.folder("reward_model"), detect_device()),
            prompts,
            config,
            output,
            on_update,
        )
        started = time.perf_counter()
        with suppress(Enough):
            trainer.train()
    return [at - started for at in times], rewards


def trl(
    run: Run, prompts: list[str], updates: int, learning_rate: float, goal: float
) -> tuple[list[float], list[float]]:
    """The same episodes, minibatches, epochs, KL coefficient and penalty; a value model that starts from the reward
    model."""
    import run_trl

    config = run.recipe.ppo
    watch = run_trl.train(
        run.folder("sft"),
        run.folder("reward_model"),
        run.folder("reward_model"),
        prompts,
        dict(
            bf16=False,
            learning_rate=learning_rate,
            per_device_train_batch_size=config.minibatch_size,
            gradient_accumulation_steps=config.rollout_batch_size // config.minibatch_size,
            num_mini_batches=config.rollout_batch_size // config.minibatch_size,
            local_rollout_forward_batch_size=config.rollout_batch_size,
            num_ppo_epochs=config.epochs,
            response_length=config.max_new_tokens,
            kl_coef=config.kl_coefficient,
            missing_eos_penalty=config.missing_eos_penalty,
            total_episodes=updates * config.rollout_batch_size,
        ),
        goal,
    )
    return [at - watch.times[0] for at in watch.times[1:]], watch.scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--program", choices=("ours", "trl"), required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--goal", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    run = Run.load(asked.run)
    prompts = list(PreparedData.load(run.folder("data")).splits["ppo"]["prompt"])
    train = ours if asked.program == "ours" else trl
    seconds, rewards = train(run, prompts, asked.updates, asked.learning_rate, asked.goal)
    asked.out.write_text(json.dumps({"seconds": seconds, "rewards": rewards}))


if __name__ == "__main__":
    main()
