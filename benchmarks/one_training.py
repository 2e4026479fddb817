"""One measured training, by our PPO, trl 1.12's, or trl's RLOO or GRPO, from the same models and settings. Started by
ppo_vs_trl.py.

    python benchmarks/one_training.py JOB.json OUT.json

A job holds `program` (ours, trl, rloo, grpo), folders `policy`, `reward` and `value` (where trl's value model starts),
`prompts`, `config` (a PPOConfig), `goal`: a mean reward at which it ends, or null, and `world`: the synthetic dataset
whose gold preference is measured beside the reward, or null.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from workload import matmul_rate, reached  # also puts the repository on the path

from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.runtime import detect_device, peak_memory
from rlhf_utils.ppo import PPOConfig
from rlhf_utils.settings.template import TEMPLATE


class Enough(Exception):
    """The goal is reached."""


class Watch:
    """Clock, memory, mean reward and gold of every update; ends the training once `goal` is reached."""

    def __init__(self, goal: float | None):
        self.goal, self.times, self.rewards, self.gold, self.peak = goal, [], [], [], 0

    def started(self) -> None:
        self.times = [time.perf_counter()]

    def updated(self) -> None:
        self.times.append(time.perf_counter())
        self.peak = max(self.peak, peak_memory()[1] or peak_memory()[0])
        if self.goal is not None and reached(self.rewards, self.goal) is not None:
            raise Enough

    def result(self) -> dict:
        steps = zip(self.times, self.times[1:], strict=False)
        return {
            "seconds": [at - self.times[0] for at in self.times[1:]],
            "seconds_per_update": [after - before for before, after in steps],
            "rewards": self.rewards,
            "gold": self.gold,
            "peak_memory_bytes": self.peak,
        }


def ours(job: dict, config: PPOConfig, watch: Watch) -> dict:
    """Train with `rlhf_utils.ppo`; returns what the figures need beside the clock."""
    from rlhf_utils.models.loading import load_tokenizer
    from rlhf_utils.ppo import PPOTrainer
    from rlhf_utils.rewards.reward_model import load_reward

    device, tokenizer, lines = detect_device(config.precision), load_tokenizer(Path(job["policy"])), []

    def on_update(line: dict) -> None:
        lines.append(line)
        watch.rewards.append(line["reward"])
        watch.gold.append(line["gold"])
        watch.updated()

    with tempfile.TemporaryDirectory() as output:
        reward, judge = load_reward(Path(job["reward"]), device), gold_of(job["world"])
        how = (reward, job["prompts"], config, output, on_update)
        trainer = PPOTrainer(Path(job["policy"]), tokenizer, *how, judge=judge)
        watch.started()
        with suppress(Enough):
            trainer.train()
    shape = AutoConfig.from_pretrained(job["policy"])
    lengths = [len(ids) for ids in tokenizer([TEMPLATE.format(prompt) for prompt in job["prompts"]])["input_ids"]]
    return {
        "phase_seconds": [line["phase_seconds"] for line in lines],
        "response_tokens": [line["response_tokens"] for line in lines],
        "eos_rate": [line["eos_rate"] for line in lines],
        "episodes": config.rollout_batch_size,
        "block_parameters": shape.n_layer * (12 * shape.n_embd**2 + 13 * shape.n_embd),
        "width": shape.n_embd,
        "vocabulary": shape.vocab_size,
        "layers": shape.n_layer,
        "prompt_tokens": sum(lengths) / len(lengths),
        "matmul_flops": matmul_rate(torch.float32, device.kind),
    }


def gold_of(world: str | None):
    """The gold preference of a synthetic dataset as a reward function; None without one."""
    from rlhf_utils.toyworld import WORLDS

    if world is None:
        return None
    return lambda prompts, texts: [*map(WORLDS[world].gold, prompts, texts)]


class InUnits(torch.nn.Module):
    """A reward model's head in the unit of our RewardModel: (logit - mean) / std.

    trl reads the reward at the EOS, and this project's reward models are trained to be read at the token before it;
    with `before_eos` every position gives the value of the one before, so that both learn from the same reward.
    """

    def __init__(self, head: torch.nn.Module, mean: float, std: float, before_eos: bool = False):
        super().__init__()
        self.head, self.mean, self.std, self.before_eos = head, mean, std, before_eos

    def forward(self, states):
        values = (self.head(states) - self.mean) / self.std
        return torch.cat([values[:, :1], values[:, :-1]], dim=1) if self.before_eos else values


def trl(job: dict, config: PPOConfig, watch: Watch) -> dict:
    """Train with trl 1.12's PPOTrainer: the same episodes, minibatches, epochs, KL coefficient and penalty."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig as TrlConfig
    from trl.experimental.ppo import PPOTrainer as TrlTrainer

    class Callback(TrainerCallback):
        def on_train_begin(self, *_, **__):
            watch.started()

        def on_log(self, *_, logs=None, **__):
            # The scores of an update are logged before its step ends.
            if logs and "objective/scores" in logs:
                watch.rewards.append(logs["objective/scores"])

        def on_step_end(self, *_, **__):
            watch.updated()

    tokenizer = AutoTokenizer.from_pretrained(job["policy"], padding_side="left")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # trl tells padding by its id, so an EOS that is also the padding would never be learned from.
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    rows = tokenizer([TEMPLATE.format(prompt) for prompt in job["prompts"]], add_special_tokens=False)["input_ids"]
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32) for _ in range(2))
    kind = dict(num_labels=1, dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(job["value"], **kind)
    reward = AutoModelForSequenceClassification.from_pretrained(job["reward"], **kind)
    for model in (policy, reference, value, reward):
        model.config.pad_token_id = tokenizer.pad_token_id
        if model.config.vocab_size <= tokenizer.pad_token_id:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1)
    scale = Path(job["reward"]) / "reward_scale.json"
    if scale.is_file():
        units = {name: read_json(scale)[name] for name in ("mean", "std")}
        reward.score = InUnits(reward.score, **units, before_eos=True)
        if job["value"] == job["reward"]:
            value.score = InUnits(value.score, **units)
    micro = config.microbatch_size or config.minibatch_size
    with tempfile.TemporaryDirectory() as output:
        arguments = TrlConfig(
            output_dir=output, stop_token="eos", temperature=1.0, num_sample_generations=0, save_strategy="no",
            logging_steps=1, report_to="none", disable_tqdm=True, gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(), **{name: config.precision == name for name in ("fp16", "bf16")},
            learning_rate=config.learning_rate, per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.rollout_batch_size // micro,
            num_mini_batches=config.rollout_batch_size // config.minibatch_size,
            local_rollout_forward_batch_size=config.rollout_batch_size, num_ppo_epochs=config.epochs,
            response_length=config.max_new_tokens, kl_coef=config.kl_coefficient,
            missing_eos_penalty=config.missing_eos_penalty, total_episodes=config.updates * config.rollout_batch_size,
        )  # fmt: skip
        trainer = TrlTrainer(
            args=arguments, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
            value_model=value, train_dataset=Dataset.from_dict({"input_ids": rows}),
            eval_dataset=Dataset.from_dict({"input_ids": rows[:1]}), callbacks=[Callback()],
        )  # fmt: skip
        with suppress(Enough):
            trainer.train()
    return {}


def by_groups(job: dict, config: PPOConfig, watch: Watch) -> dict:
    """Train with the environment's trl, by RLOO or GRPO, which compare several responses to a prompt in place of a
    critic: the same reward, responses, minibatches, epochs, KL coefficient and penalty; all else is trl's default,
    responses per prompt among it (2 in RLOO, 8 in GRPO). Positions are named, which trl leaves out."""
    import trl
    from datasets import Dataset
    from transformers import TrainerCallback

    from rlhf_utils.models.language_model import positions_named
    from rlhf_utils.models.loading import load_policy, load_tokenizer
    from rlhf_utils.rewards.reward_model import load_reward

    kind = job["program"].upper()
    device, tokenizer = detect_device(config.precision), load_tokenizer(Path(job["policy"]))
    reward, judge = load_reward(Path(job["reward"]), device), gold_of(job["world"])
    asked = {TEMPLATE.format(prompt): prompt for prompt in job["prompts"]}
    steps = config.rollout_batch_size // config.minibatch_size * config.epochs

    def paid(prompts, completions, completion_ids, **_):
        plain, texts = [asked[prompt] for prompt in prompts], [*map(TEMPLATE.response, completions)]
        scores = reward(plain, texts)
        watch.rewards.append(scores.mean().item())
        watch.gold.append(statistics.fmean(judge(plain, texts)) if judge else None)
        unfinished = torch.tensor([ids[-1] != tokenizer.eos_token_id for ids in completion_ids])
        return (scores - config.missing_eos_penalty * unfinished).tolist()

    class Callback(TrainerCallback):
        def on_train_begin(self, *_, **__):
            watch.started()

        def on_step_end(self, _, state, *__, **___):
            if state.global_step % steps == 0:
                watch.updated()

    micro = config.microbatch_size or config.minibatch_size
    with tempfile.TemporaryDirectory() as output:
        arguments = getattr(trl, f"{kind}Config")(
            output_dir=output, max_steps=config.updates * steps, save_strategy="no", report_to="none",
            disable_tqdm=True, gradient_checkpointing=False, disable_dropout=True, logging_steps=1000,
            use_cpu=device.kind == "cpu", **{name: config.precision == name for name in ("fp16", "bf16")},
            seed=config.seed,
            learning_rate=config.learning_rate, per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.minibatch_size // micro, num_iterations=config.epochs,
            generation_batch_size=config.rollout_batch_size, max_completion_length=config.max_new_tokens,
            temperature=config.temperature, beta=config.kl_coefficient, epsilon=config.clip_range,
        )  # fmt: skip
        trainer = getattr(trl, f"{kind}Trainer")(
            model=positions_named(load_policy(Path(job["policy"]), device)), reward_funcs=paid, args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [*asked]}), processing_class=tokenizer, callbacks=[Callback()],
        )  # fmt: skip
        if trainer.ref_model is not None:
            positions_named(trainer.ref_model)
        with suppress(Enough):
            trainer.train()
    return {}


def main(job: Path, out: Path) -> None:
    asked = json.loads(job.read_text())
    watch = Watch(asked["goal"])
    programs = {"ours": ours, "trl": trl, "rloo": by_groups, "grpo": by_groups}
    more = programs[asked["program"]](asked, PPOConfig(**asked["config"]), watch)
    write_json(out, watch.result() | more)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
