"""The PPO loop: collect a rollout, learn from it for a few epochs, log, maybe checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_utils.errors import InputError, TrainingError
from rlhf_utils.files import disk_errors, write_text
from rlhf_utils.models import load_policy
from rlhf_utils.ppo.actor_critic import ActorCritic
from rlhf_utils.ppo.checkpoint import CheckpointStore
from rlhf_utils.ppo.objective import (
    adapted_kl_coefficient,
    explained_variance,
    kl_estimate,
    masked_mean,
    policy_loss,
    value_loss,
)
from rlhf_utils.ppo.rollout import Rollout, RolloutCollector, seeded
from rlhf_utils.rewards import RewardFunction
from rlhf_utils.runtime import detect_device
from rlhf_utils.settings import PPOConfig
from rlhf_utils.template import TEMPLATE

# How far sampling and a fresh forward pass may differ per token (nats) before something is wrong with masks or
# positions.
_SAME = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}
_SAMPLES_SHOWN = 4


class PPOTrainer:
    """Proximal policy optimisation of a causal language model against any reward function.

    policy: folder or hub id of the policy to start from; the frozen reference is a second load of the same
    tokenizer: its tokenizer
    reward_function: `(prompts: list[str], responses: list[str]) -> FloatTensor[n]`
    prompts: plain prompts; the project's template is put around them here
    config: see `PPOConfig`
    output_dir: gets `metrics.jsonl`, `samples.jsonl` and `checkpoints/`
    on_update: called after each update with its line of metrics
    """

    def __init__(
        self,
        policy: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        reward_function: RewardFunction,
        prompts: Sequence[str],
        config: PPOConfig,
        output_dir: str | Path,
        on_update: Callable[[dict], None] | None = None,
    ):
        if not prompts:
            raise InputError("PPO has no prompts to answer; give at least one")
        self.config, self.tokenizer, self.on_update = config, tokenizer, on_update
        self.device = detect_device(config.precision)
        self.accelerator = Accelerator(
            mixed_precision="no" if self.device.precision == "fp32" else self.device.precision,
            cpu=self.device.kind == "cpu",
        )
        self.output_dir = Path(output_dir)
        with disk_errors(self.output_dir):
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self.store = CheckpointStore(self.output_dir / "checkpoints", config.keep_checkpoints)
        self.actor = ActorCritic(load_policy(policy, self.device))
        self.reference = load_policy(policy, self.device).eval().requires_grad_(False)
        self._check_context(prompts)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.actor.policy.parameters()), "lr": config.learning_rate},
                {
                    "params": list(self.actor.value_head.parameters()),
                    "lr": config.value_learning_rate or config.learning_rate,
                },
            ],
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = self.accelerator.prepare(self.actor, self.optimizer)
        self.rollouts = RolloutCollector(
            prompts, [TEMPLATE.format(p) for p in prompts], tokenizer, reward_function, self.reference, config
        )
        self.kl_coefficient, self.step_scale, self.samples_written = config.kl_coefficient, 1.0, 0

    def train(self, resume: bool = True) -> list[dict]:
        """Run to `config.updates` updates, from the newest complete checkpoint if `resume`; returns the lines of
        metrics.jsonl."""
        history = self._restore() if resume else self._start_over()
        while len(history) < self.config.updates and not self._budget_spent(history):
            update = len(history)
            started = time.perf_counter()
            rollout = self._collect(update)
            if update == 0:
                self._check_first(rollout)
            losses = self._learn(rollout, update)
            history.append(self._metrics(update, rollout, losses, time.perf_counter() - started))
            self._log(history, rollout)
            self._adapt(history[-1])
            if (
                len(history) % self.config.save_every == 0
                or len(history) == self.config.updates
                or self._budget_spent(history)
            ):
                self._save(history)
        return history

    def policy(self) -> torch.nn.Module:
        """The policy as it is now, a plain causal language model."""
        return self.actor.policy

    def _collect(self, update: int) -> Rollout:
        self.actor.eval()
        with self.accelerator.autocast():
            return self.rollouts.collect(self.actor, update, self.kl_coefficient)

    def _learn(self, rollout: Rollout, update: int) -> dict[str, float | None]:
        """`epochs` passes over the rollout in random minibatches, one optimizer step each; returns the mean losses."""
        config = self.config
        self.actor.train()
        for group, rate in zip(self.optimizer.param_groups, self._learning_rates(update), strict=True):
            group["lr"] = rate
        totals: dict[str, list[float]] = {}
        for epoch in range(config.epochs):
            order = torch.randperm(len(rollout.episodes), generator=seeded(config.seed, 3, update, epoch)).to(
                rollout.scores.device
            )
            for minibatch in order.split(config.minibatch_size):
                figures = self._step(rollout, minibatch, update)
                if epoch == 0 and not totals:
                    self._check_ratio(figures["ratio_error"], update)
                for name, value in figures.items():
                    totals.setdefault(name, []).append(value)
        return {name: _finite_mean(values) for name, values in totals.items()}

    def _step(self, rollout: Rollout, minibatch: Tensor, update: int) -> dict[str, float]:
        """One optimizer step on `minibatch`; gradients of its microbatches add up to the gradient of the whole."""
        config = self.config
        lengths = rollout.episodes.mask[minibatch].sum(dim=1) + rollout.episodes.prompt_lengths[minibatch]
        # Sorted by length, microbatches carry little padding; the sum of their gradients does not depend on the order.
        microbatches = minibatch[lengths.argsort()].split(config.microbatch_size or config.minibatch_size)
        tokens = rollout.episodes.mask[minibatch].sum()
        figures: dict[str, float] = {}
        for rows in microbatches:
            part = rollout.episodes.select(rows)
            width, weight = part.mask.shape[1], part.mask.sum() / tokens
            with self.accelerator.autocast():
                logprobs, values = self.model(part.tokens, part.prompt_lengths, part.mask, config.temperature)
            old_logprobs = rollout.logprobs[rows, :width]
            policy = policy_loss(logprobs, old_logprobs, rollout.advantages[rows, :width], part.mask, config.clip_range)
            value = value_loss(
                values, rollout.values[rows, :width], rollout.returns[rows, :width], part.mask, config.value_clip_range
            )
            loss = policy.loss + config.value_coefficient * value.loss
            if not loss.isfinite():
                raise TrainingError(
                    f"update {update}: the loss is {loss.item()}; lower ppo.learning_rate, or check the reward "
                    "function for extreme values"
                )
            self.accelerator.backward(loss * weight)
            for name, figure in {
                "policy_loss": policy.loss,
                "value_loss": value.loss,
                "clip_fraction": policy.clip_fraction,
                "value_clip_fraction": value.clip_fraction,
                "update_kl": policy.approximate_kl,
            }.items():
                figures[name] = figures.get(name, 0.0) + (figure.detach() * weight).item()
            error = (logprobs.detach() - old_logprobs).masked_fill(~part.mask, 0.0).abs().max().item()
            figures["ratio_error"] = max(figures.get("ratio_error", 0.0), error)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm).item()
        # fp16's loss scaler steps over an overflow by itself; in any other precision the weights would be lost.
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            raise TrainingError(
                f"update {update}: the gradient norm is {norm}; lower ppo.learning_rate or ppo.max_grad_norm"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**figures, "gradient_norm": norm}

    def _learning_rates(self, update: int) -> tuple[float, float]:
        """Linear decay from the configured rates to `final_learning_rate_ratio` of them at the last update."""
        config = self.config
        done = update / max(config.updates - 1, 1)
        scale = (1.0 - done * (1.0 - config.final_learning_rate_ratio)) * self.step_scale
        return config.learning_rate * scale, (config.value_learning_rate or config.learning_rate) * scale

    def _metrics(self, update: int, rollout: Rollout, losses: dict[str, float | None], seconds: float) -> dict:
        mask = rollout.episodes.mask
        per_answer = {
            name: kl_estimate(rollout.logprobs, rollout.reference_logprobs, name)
            .masked_fill(~mask, 0.0)
            .sum(dim=1)
            .mean()
            .item()
            for name in ("k1", "k3")
        }
        reward, tokens = rollout.scores.mean().item(), int(mask.sum())
        variance = explained_variance(rollout.values, rollout.returns, mask).item()
        return {
            "update": update,
            "episodes": (update + 1) * len(rollout.scores),
            "reward": reward,
            "reward_std": rollout.scores.std(correction=0).item(),
            "kl": per_answer["k1"],
            "kl_k3": per_answer["k3"],
            "kl_coefficient": self.kl_coefficient,
            "objective": reward - self.kl_coefficient * per_answer["k1"],
            "entropy": masked_mean(rollout.entropy, mask).item(),
            **losses,
            "explained_variance": variance if math.isfinite(variance) else None,
            "response_tokens": tokens / len(rollout.scores),
            "eos_rate": sum(answer.ended for answer in rollout.answers) / len(rollout.answers),
            "learning_rate": self._learning_rates(update)[0],
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
            "phase_seconds": {**rollout.seconds, "learning": seconds - sum(rollout.seconds.values())},
        }

    def _log(self, history: list[dict], rollout: Rollout) -> None:
        line = history[-1]
        self._append("metrics.jsonl", [line])
        if line["update"] % self.config.sample_every == 0 or len(history) == self.config.updates:
            shown = list(zip(rollout.prompts, rollout.answers, rollout.scores.tolist(), strict=True))[:_SAMPLES_SHOWN]
            self._append(
                "samples.jsonl",
                [
                    {"update": line["update"], "prompt": prompt, "response": answer.text, "reward": score}
                    for prompt, answer, score in shown
                ],
            )
            self.samples_written += len(shown)
        if self.on_update:
            self.on_update(line)

    def _append(self, name: str, lines: list[dict]) -> None:
        path = self.output_dir / name
        with disk_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def _adapt(self, line: dict) -> None:
        """Change what the next update starts from: the adaptive KL coefficient, and smaller steps while over the KL
        budget."""
        config = self.config
        if config.kl_controller == "adaptive":
            self.kl_coefficient = adapted_kl_coefficient(
                self.kl_coefficient, line["kl"], config.kl_target, config.rollout_batch_size, config.kl_horizon
            )
        if config.kl_budget is not None and config.kl_budget_action == "shrink" and line["kl"] > config.kl_budget:
            self.step_scale *= 0.5

    def _budget_spent(self, history: list[dict]) -> bool:
        config = self.config
        return bool(
            config.kl_budget is not None
            and config.kl_budget_action == "stop"
            and history
            and history[-1]["kl"] > config.kl_budget
        )

    def _check_context(self, prompts: Sequence[str]) -> None:
        limit = getattr(self.actor.policy.config, "max_position_embeddings", None)
        longest = max(
            len(row)
            for row in self.tokenizer([TEMPLATE.format(p) for p in prompts], add_special_tokens=False)["input_ids"]
        )
        if limit and longest + self.config.max_new_tokens > limit:
            raise InputError(
                f"the longest prompt has {longest} tokens and ppo.max_new_tokens is {self.config.max_new_tokens}, but "
                f"the policy's context is {limit}; lower data.max_prompt_tokens or ppo.max_new_tokens"
            )

    def _check_first(self, rollout: Rollout) -> None:
        """Before the first step policy and reference are the same model, so the KL of every token has to be 0."""
        worst = (rollout.logprobs - rollout.reference_logprobs).abs().max().item()
        if worst > _SAME[self.device.precision]:
            raise TrainingError(
                f"update 0: policy and reference differ by {worst:.2g} nats on a token although they are the same "
                "model; padding, positions or dropout are handled differently in sampling and in scoring"
            )

    def _check_ratio(self, error: float, update: int) -> None:
        """Before the first step of an update the policy is the one that sampled, so every probability ratio has to
        be 1."""
        if error > _SAME[self.device.precision]:
            raise TrainingError(
                f"update {update}: the first minibatch's log-ratio is {error:.2g} instead of 0; sampling and "
                "training do not compute the same log-probabilities"
            )

    def _save(self, history: list[dict]) -> None:
        self.store.save(
            len(history),
            self.accelerator,
            self.actor,
            self.tokenizer,
            {
                "kl_coefficient": self.kl_coefficient,
                "step_scale": self.step_scale,
                "samples_written": self.samples_written,
            },
        )

    def _restore(self) -> list[dict]:
        state = self.store.restore(self.accelerator)
        if state is None:
            return self._start_over()
        self.kl_coefficient, self.step_scale = state["kl_coefficient"], state["step_scale"]
        self.samples_written = state["samples_written"]
        # Updates after the checkpoint are done again, so their lines go.
        history = _keep_lines(self.output_dir / "metrics.jsonl", state["update"])
        _keep_lines(self.output_dir / "samples.jsonl", self.samples_written)
        return history

    def _start_over(self) -> list[dict]:
        self.store.clear()
        for name in ("metrics.jsonl", "samples.jsonl"):
            (self.output_dir / name).unlink(missing_ok=True)
        # The weights may be those of an earlier `train`, or of a damaged checkpoint that was read in part.
        self.actor.policy.load_state_dict(self.reference.state_dict())
        self.actor.reset_value_head()
        self.optimizer.state.clear()
        self.kl_coefficient, self.step_scale, self.samples_written = self.config.kl_coefficient, 1.0, 0
        return []


def _keep_lines(path: Path, count: int) -> list[dict]:
    """Cut a jsonl file to its first `count` lines and return them; what follows may be a line half written."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1][:count] if path.exists() else []
    if len(lines) < count:
        raise InputError(
            f"{path} has {len(lines)} lines, but the checkpoint beside it stands at {count}; restore the file, or "
            "train anew with resume=False"
        )
    write_text(path, "".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]


def _finite_mean(values: list[float]) -> float | None:
    """Mean of the finite ones: fp16 steps over an overflow, whose gradient norm is infinite and no JSON number."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
