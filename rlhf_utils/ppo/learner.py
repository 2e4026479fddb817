"""The update: a few epochs of clipped steps on one rollout."""

import contextlib
import math

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.platforms.runtime import give_back_memory
from rlhf_utils.ppo.objective import kl_estimate, masked_mean, policy_loss, value_loss
from rlhf_utils.ppo.policies import ActorCritic
from rlhf_utils.ppo.rollout import Rollout, seeded
from rlhf_utils.settings.sections import PPOConfig

FIGURES = ("policy_loss", "value_loss", "clip_fraction", "value_clip_fraction", "update_kl", "ratio_error")
# What `learn` returns, as it stands in the metrics of an update that nothing was learnt from.
NOT_LEARNT = dict.fromkeys((*FIGURES, "gradient_norm", "learning_rate")) | {"skipped_steps": 0}
# How far sampling and a fresh forward pass may differ per token (nats, root mean square) before something is wrong with
# masks or positions. Rounding alone gives SmolLM2-135M 1e-6, 0.024 and 0.0034.
SAME = {"fp32": 3e-4, "bf16": 0.1, "fp16": 0.02}
# GradScaler begins at 2**16 and halves its factor at each overflow; after so many in a row it is far below 1.
MOST_SKIPPED = 20
_ADVICE = "lower ppo.learning_rate or ppo.reward_scale, look for extreme rewards; under fp16 try fp32 or bf16"


class Learner:
    """Owns the optimizer; `learn` takes the steps of one update."""

    def __init__(self, actor: ActorCritic, accelerator: Accelerator, config: PPOConfig, precision: str):
        self.actor, self.accelerator, self.config, self.precision = actor, accelerator, config, precision
        self.steps = config.epochs * config.rollout_batch_size // config.minibatch_size  # of an update
        self._skipped_in_a_row = 0
        policy = [p for p in actor.policy.parameters() if p.requires_grad]
        critic = [*actor.value_head.parameters(), *(actor.critic.parameters() if actor.critic is not None else ())]
        groups = [{"params": policy}, {"params": critic}]
        optimizer = torch.optim.AdamW(groups, eps=config.adam_epsilon, weight_decay=config.weight_decay, fused=True)
        self.model, self.optimizer = accelerator.prepare(actor, optimizer)
        self._parameters = [*policy, *critic]

    def learn(self, rollout: Rollout, update: int) -> dict[str, float | None]:
        """`epochs` passes over the rollout in random minibatches, one optimizer step each; returns the mean losses, and
        the policy's learning rate in the last step."""
        config, taken = self.config, []
        self.actor.train()
        for epoch in range(config.epochs):
            order = torch.randperm(len(rollout.episodes), generator=seeded(config.seed, 3, update, epoch))
            for minibatch in order.to(rollout.scores.device).split(config.minibatch_size):
                rates = self.learning_rates(update, len(taken))
                for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate
                taken.append(self._step(rollout, minibatch, update, first=not taken))
        losses = {"learning_rate": rates[0], "skipped_steps": sum(step["skipped"] for step in taken)}
        for name in (*FIGURES, "gradient_norm"):
            # Where fp16 stepped over an overflow, the gradient norm is infinite and no JSON number.
            finite = [step[name] for step in taken if math.isfinite(step[name])]
            losses[name] = sum(finite) / len(finite) if finite else None
        return losses

    def learning_rates(self, update: int, step: int) -> tuple[float, float]:
        """The rates (policy, critic) of optimizer step `step` of an update: linear decay over the updates to
        `final_learning_rate_ratio` of the configured ones, after a linear rise over the first `warmup_ratio` of all
        steps, for Adam's first steps move every weight by nearly the whole rate."""
        config = self.config
        done = update / max(config.updates - 1, 1)
        warming = math.ceil(config.warmup_ratio * config.updates * self.steps)
        risen = min(1.0, (update * self.steps + step + 1) / (warming + 1))
        scale = (1.0 - done * (1.0 - config.final_learning_rate_ratio)) * risen
        return config.learning_rate * scale, (config.value_learning_rate or config.learning_rate) * scale

    def _step(self, rollout: Rollout, minibatch: Tensor, update: int, first: bool) -> dict[str, float]:
        """One optimizer step on `minibatch`, in microbatches that fit into memory; `first` of its update or not."""
        asked, share = self.config.microbatch_size, len(minibatch) // processes.count()

        def gradients(size: int) -> dict[str, float]:
            self.optimizer.zero_grad()  # those of an attempt that ran out of memory half-way
            # Whole minibatches are not split by length where nobody asked for it and nothing forced it.
            return self._gradients(rollout, minibatch, update, None if asked is None and size >= share else size)

        figures = fitting("ppo learning", min(asked or share, share), gradients)
        # Before the first step the policy is the one that sampled, so every ratio has to be 1.
        if first and figures["ratio_error"] > SAME[self.precision]:
            raise TrainingError(
                f"update {update}: the first minibatch's log-ratio is {figures['ratio_error']:.2g} instead of "
                "0; sampling and training do not compute the same log-probabilities"
            )
        norm = self.accelerator.clip_grad_norm_(self._parameters, self.config.max_grad_norm).item()
        # fp16's loss scaler steps over an overflow by itself; in any other precision the weights would be lost.
        skipped = not math.isfinite(norm)
        if skipped and self.accelerator.scaler is None:
            raise TrainingError(f"update {update}: the gradient norm is {norm}; {_ADVICE}")
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row >= MOST_SKIPPED:
            told = f"fp16 overflowed in {MOST_SKIPPED} steps in a row, so nothing is learnt"
            raise TrainingError(f"update {update}: {told}; {_ADVICE}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        give_back_memory()
        return {**figures, "gradient_norm": norm, "skipped": int(skipped)}

    def _gradients(self, rollout: Rollout, minibatch: Tensor, update: int, size: int | None) -> dict[str, float]:
        """Add up the gradients of `minibatch` in microbatches of at most `size`, whose sum depends on neither order nor
        size nor the number of processes; returns its losses."""
        tokens, others = rollout.episodes.mask[minibatch].sum(), processes.count()
        totals = torch.zeros(len(FIGURES), dtype=torch.float64)
        if others > 1:
            # Every so-manieth by length: each process gets as many rows, and nearly as many tokens.
            minibatch = rollout.episodes.by_length(minibatch, None)[0][processes.index() :: others]
        parts = rollout.episodes.by_length(minibatch, size)
        for number, rows in enumerate(parts, 1):
            weight = rollout.episodes.mask[rows].sum() / tokens
            # Processes exchange gradients once per step, with their last microbatch.
            with self.accelerator.no_sync(self.model) if number < len(parts) else contextlib.nullcontext():
                loss, figures = self._loss(rollout, rows)
            if not loss.isfinite():
                raise TrainingError(f"update {update}: the loss is {loss.item()}; {_ADVICE}")
            # The exchange is a mean over the processes, and the gradient is their sum.
            self.accelerator.backward(loss * (weight * others))
            totals += (figures * weight).cpu()
        figures = dict(zip(FIGURES, sum(processes.gathered(totals)).tolist(), strict=True))
        return {**figures, "ratio_error": figures["ratio_error"] ** 0.5}

    def _loss(self, rollout: Rollout, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What a step lowers, a mean over the tokens of the episodes `rows`, and its `FIGURES` [6]."""
        config, part = self.config, rollout.episodes.select(rows)
        old_logprobs, advantages, old_values, returns = (
            column[rows, : part.mask.shape[1]]
            for column in (rollout.logprobs, rollout.advantages, rollout.values, rollout.returns)
        )
        with self.accelerator.autocast():
            logprobs, values = self.model(part.tokens, part.prompt_lengths, part.mask, config.temperature)
        policy, clipped = policy_loss(logprobs, old_logprobs, advantages, part.mask, config.clip_range)
        value_range = config.value_clip_range and config.value_clip_range * rollout.spread
        value, value_clipped = value_loss(values, old_values, returns, part.mask, value_range)
        # On a shared trunk the error of raw scores, many times 1, would drown the policy's gradient.
        loss = policy + config.value_coefficient * value / max(rollout.spread, 1.0) ** 2
        moved = masked_mean(kl_estimate(old_logprobs, logprobs, "k3"), part.mask)
        error = masked_mean((logprobs - old_logprobs).square(), part.mask)
        return loss, torch.stack([policy, value, clipped, value_clipped, moved, error]).detach()
