"""One measured training with trl 1.12's PPOTrainer; writes JSON. Started by ppo_vs_trl.py with trl 1.12 on the path."""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402
from workload import arguments, reached, workload  # noqa: E402

from rlhf_utils.platforms.files import read_json  # noqa: E402
from rlhf_utils.platforms.runtime import peak_memory_bytes  # noqa: E402
from rlhf_utils.settings.template import TEMPLATE  # noqa: E402


class Enough(Exception):
    """The goal is reached."""


class Watch(TrainerCallback):
    """The clock, the memory and the mean score of every update; ends the training once it has reached `goal`."""

    def __init__(self, goal: float | None = None):
        self.times, self.scores, self.peak, self.goal = [], [], 0, goal

    def on_train_begin(self, args, state, control, **_):
        self.times.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "objective/scores" in logs:
            self.scores.append(logs["objective/scores"])

    def on_step_end(self, args, state, control, **_):
        self.times.append(time.perf_counter())
        self.peak = max(self.peak, peak_memory_bytes())
        # The scores of this update are logged before its step ends.
        if self.goal is not None and reached(self.scores, self.goal) is not None:
            raise Enough


class InUnits(torch.nn.Module):
    """A reward model's head in the unit of `rlhf_utils.rewards.RewardModel`: (logit - mean) / std.

    trl reads the reward at the EOS, and this project's reward models are trained to be read at the token before it;
    with `before_eos` every position gives the value of the one before, so that both learn from the same reward.
    """

    def __init__(self, head: torch.nn.Module, mean: float, std: float, before_eos: bool = False):
        super().__init__()
        self.head, self.mean, self.std, self.before_eos = head, mean, std, before_eos

    def forward(self, states):
        values = (self.head(states) - self.mean) / self.std
        return torch.cat([values[:, :1], values[:, :-1]], dim=1) if self.before_eos else values


def train(
    policy: Path, reward: Path, value: Path, prompts: list[str], settings: dict, goal: float | None = None
) -> Watch:
    """Train and return what was seen. Prompts are given as the project's template words them."""
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # trl tells padding by its id, so an EOS that is also the padding would never be learnt from.
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    rows = tokenizer([TEMPLATE.format(p) for p in prompts], add_special_tokens=False)["input_ids"]
    models = [AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32) for _ in range(2)]
    value_model = AutoModelForSequenceClassification.from_pretrained(value, num_labels=1, dtype=torch.float32)
    reward_model = AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1, dtype=torch.float32)
    for model in (*models, value_model, reward_model):
        model.config.pad_token_id = tokenizer.pad_token_id
        if model.config.vocab_size <= tokenizer.pad_token_id:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1)
    scale = reward / "reward_scale.json"
    if scale.is_file():
        units = read_json(scale)
        reward_model.score = InUnits(reward_model.score, units["mean"], units["std"], before_eos=True)
        if value == reward:
            value_model.score = InUnits(value_model.score, units["mean"], units["std"])
    watch = Watch(goal)
    with tempfile.TemporaryDirectory() as output:
        arguments = PPOConfig(
            output_dir=output,
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            save_strategy="no",
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            fp16=False,
            **settings,
        )
        trainer = PPOTrainer(
            args=arguments,
            processing_class=tokenizer,
            model=models[0],
            ref_model=models[1],
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            eval_dataset=Dataset.from_dict({"input_ids": rows[:1]}),
            callbacks=[watch],
        )
        with suppress(Enough):
            trainer.train()
    return watch


def main() -> None:
    asked = arguments()
    job = workload(asked.workload, asked.episodes)
    policy = asked.work / f"policy_{job.name}"
    watch = train(
        policy,
        asked.work / "reward",
        policy,
        json.loads((asked.work / "prompts.json").read_text())[job.name],
        dict(
            bf16=asked.precision == "bf16",
            learning_rate=1e-6,
            per_device_train_batch_size=job.micro,
            gradient_accumulation_steps=job.episodes // job.micro,
            local_rollout_forward_batch_size=job.episodes,
            num_mini_batches=1,
            num_ppo_epochs=job.epochs,
            response_length=job.response_tokens,
            total_episodes=asked.updates * job.episodes,
        ),
    )
    asked.out.write_text(
        json.dumps(
            {
                "seconds_per_update": [b - a for a, b in zip(watch.times, watch.times[1:], strict=False)],
                "peak_memory_bytes": watch.peak,
            }
        )
    )


if __name__ == "__main__":
    main()
