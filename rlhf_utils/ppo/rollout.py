"""Collecting experience: sample answers, score them, and shape the rewards the update learns from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.generation import Answer, left_padded, sample, to_answers
from rlhf_utils.models.language_model import Episodes, answer_logprobs, end_ids, right_padded
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.ppo.actor_critic import ActorCritic
from rlhf_utils.ppo.objective import advantages_and_returns, kl_estimate, masked_whiten, shaped_rewards
from rlhf_utils.ppo.policies import Policy
from rlhf_utils.rewards import RewardFunction, RewardMixture
from rlhf_utils.runs.finite import not_finite
from rlhf_utils.settings.sections import PPOConfig
from rlhf_utils.settings.template import Template


@dataclass
class Experience:
    """B scored episodes with R answer positions.

    `logprobs`, `reference_logprobs`, `values`, `entropy` are [B, R] and 0 outside the mask; `scores` [B] are the reward
    function's and `terms` what a mixture is made of, each [B] and unweighted; `prompt_tokens`, `prompts` and `answers`
    are the same episodes as lists, `seconds` the time per phase.
    """

    mask: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropy: Tensor
    scores: Tensor
    terms: dict[str, Tensor]
    prompt_tokens: list[list[int]]
    prompts: list[str]
    answers: list[Answer]
    seconds: dict[str, float]


@dataclass
class Rollout(Experience):
    """The experience of an update and what is learnt from it: `rewards` (what is paid per token, the KL penalty in it),
    `advantages`, `returns` [B, R], 0 outside the mask; `spread`, the standard deviation of the returns (1 where they
    are all the same), says in which unit the rewards are."""

    episodes: Episodes
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    spread: float


class RolloutCollector:
    """Makes rollouts. Which prompts update `u` sees and which random numbers it draws depend on the seed and `u` alone,
    not on how many processes share the work. Answers whose reward is not finite are left in `folder`."""

    def __init__(
        self,
        prompts: Sequence[str],
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        reward_function: RewardFunction,
        policy: Policy,
        config: PPOConfig,
        template: Template,
        folder: Path,
    ):
        self.folder = folder
        self.prompts, self.template = list(prompts), template
        self.prompt_tokens = start_tokens(tokenizer, texts)
        self.tokenizer, self.reward_function, self.policy, self.config = tokenizer, reward_function, policy, config

    def prompt_indices(self, update: int) -> list[int]:
        """The prompts of update `update`: each epoch over the prompts is a new permutation, and no prompt is
        skipped."""
        size, count = self.config.rollout_batch_size, len(self.prompts)
        positions = range(update * size, (update + 1) * size)
        orders = {
            epoch: torch.randperm(count, generator=seeded(self.config.seed, 1, epoch)).tolist()
            for epoch in range(positions[0] // count, positions[-1] // count + 1)
        }
        return [orders[position // count][position % count] for position in positions]

    @torch.no_grad()
    def collect(self, actor: ActorCritic, update: int, kl_coefficient: float) -> Rollout:
        """Sample, score and shape one batch with the present policy.

        Each process samples and scores its share of the prompts; then all of them hold the whole rollout, so that
        advantages are whitened over all of it and a minibatch is the same however many processes divide it.
        """
        device = actor.value_head.weight.device
        parts = processes.gathered(_moved(self._experience(actor, update), torch.device("cpu")))
        experience = _moved(_joined(parts), device)
        if update == 0 and actor.critic is None:
            self._begin_at_the_mean(actor, experience)
        return self._shaped(experience, kl_coefficient)

    def _begin_at_the_mean(self, actor: ActorCritic, found: Experience) -> None:
        """Let a critic that knows nothing expect the mean of the first rewards: raw scores may lie far from 0, and that
        distance would be the larger part of every advantage until the critic has learnt it."""
        bias = actor.value_head.bias
        change = self._paid(found).mean() - bias
        found.values = (found.values + change).masked_fill(~found.mask, 0.0)
        bias.add_(change)

    def _experience(self, actor: ActorCritic, update: int) -> Experience:
        """This process's share of the episodes of `update`."""
        config, device = self.config, actor.value_head.weight.device
        started = time.perf_counter()
        everything = self.prompt_indices(update)
        mine = processes.share(len(everything))
        indices = everything[mine]
        rows = [self.prompt_tokens[i] for i in indices]
        tokens, prompt_mask = left_padded(rows, self.tokenizer.pad_token_id, device)
        sampled = sample(
            actor.policy,
            tokens,
            prompt_mask,
            config.max_new_tokens,
            config.temperature,
            end_ids(self.tokenizer, actor.policy),
            seeded(config.seed, 2, update),
            keep_hidden=actor.critic is None,
            place=(mine.start, len(everything)),
        )
        answers = to_answers(rows, sampled, self.tokenizer, self.template)
        after_sampling = time.perf_counter()

        prompts = [self.prompts[i] for i in indices]
        scores, terms = self._scores(prompts, answers, update)
        after_scoring = time.perf_counter()

        episodes = self._episodes(rows, answers, sampled.mask)
        with self.policy.reference() as reference:
            reference_logprobs = self._by_parts(
                episodes, lambda part: answer_logprobs(reference, part, config.temperature)
            )
        if actor.critic is None:
            values = actor.value_head(sampled.hidden).squeeze(-1).masked_fill(~sampled.mask, 0.0)
        else:
            values = self._by_parts(episodes, actor.values)
        seconds = {
            "sampling": after_sampling - started,
            "scoring": after_scoring - after_sampling,
            "reference": time.perf_counter() - after_scoring,
        }
        return Experience(
            sampled.mask,
            sampled.logprobs,
            reference_logprobs,
            values,
            sampled.entropy,
            scores,
            terms,
            rows,
            prompts,
            answers,
            seconds,
        )

    def _shaped(self, found: Experience, kl_coefficient: float) -> Rollout:
        """What is to be learnt from the experience of all processes."""
        config = self.config
        episodes = self._episodes(found.prompt_tokens, found.answers, found.mask)
        kl = kl_estimate(found.logprobs, found.reference_logprobs, "k1")
        rewards = shaped_rewards(self._paid(found), kl, found.mask, kl_coefficient)
        advantages, returns = advantages_and_returns(rewards, found.values, found.mask, config.gamma, config.gae_lambda)
        spread = returns[found.mask].std(correction=0).item() or 1.0
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, found.mask)
        return Rollout(
            **vars(found), episodes=episodes, rewards=rewards, advantages=advantages, returns=returns, spread=spread
        )

    def _episodes(self, rows: list[list[int]], answers: list[Answer], mask: Tensor) -> Episodes:
        """Prompts and answers as token rows on the device of `mask` [B, R]."""
        whole, _ = right_padded(
            [row + answer.tokens for row, answer in zip(rows, answers, strict=True)], self.tokenizer.pad_token_id
        )
        lengths = torch.tensor([len(row) for row in rows])
        return Episodes(whole.to(mask.device), lengths.to(mask.device), mask)

    def _scores(self, prompts: list[str], answers: list[Answer], update: int) -> tuple[Tensor, dict[str, Tensor]]:
        texts, terms = [answer.text for answer in answers], {}
        if isinstance(self.reward_function, RewardMixture):
            terms = self.reward_function.terms(prompts, texts)
            scores = self.reward_function.total(terms)
        else:
            scores = self._numbers(self.reward_function(prompts, texts), prompts, texts, update)
        if scores.shape != (len(prompts),):
            raise TrainingError(
                f"the reward function returned shape {tuple(scores.shape)} for {len(prompts)} answers; "
                "it must return one number per answer"
            )
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            first = int(bad[0])
            raise not_finite(
                f"update {update}: the reward function returned {scores[first].item()} for the answer "
                f"{answers[first].text[:80]!r} to the prompt {prompts[first][:80]!r}",
                "a reward must be finite",
                self.folder,
                {"scores": scores, **terms},
                {"prompt": prompts, "response": texts},
            )
        return scores, terms

    @staticmethod
    def _numbers(returned, prompts: list[str], texts: list[str], update: int) -> Tensor:
        """What a reward function returned, as float32; TrainingError where it is no numbers."""
        try:
            found = torch.as_tensor(returned)
        except (TypeError, ValueError, RuntimeError) as error:
            wrong = [i for i, item in enumerate(returned or []) if not isinstance(item, (int, float))]
            first = wrong[0] if wrong and wrong[0] < len(prompts) else 0
            raise TrainingError(
                f"update {update}: the reward function's result is no list of numbers ({str(error)[:100]}), the first "
                f"for the prompt {prompts[first][:80]!r} and the answer {texts[first][:80]!r}; return one float each"
            ) from error
        if found.is_complex() or found.dtype == torch.bool:
            raise TrainingError(
                f"update {update}: the reward function returned {found.dtype}, beginning with the prompt "
                f"{prompts[0][:80]!r} and the answer {texts[0][:80]!r}; return one float per answer"
            )
        return found.to(torch.float32)

    def _paid(self, found: Experience) -> Tensor:
        """Scores [B] as the policy is paid them: scaled, clipped, and less where the answer does not end."""
        ended = torch.tensor([answer.ended for answer in found.answers], device=found.scores.device)
        paid = found.scores * self.config.reward_scale
        if self.config.reward_clip is not None:
            paid = paid.clamp(-self.config.reward_clip, self.config.reward_clip)
        return paid - self.config.missing_eos_penalty * (~ended).float()

    def _by_parts(self, episodes: Episodes, compute: Callable[[Episodes], Tensor]) -> Tensor:
        """`compute` of all episodes [B, R], in minibatches by length: memory and padding stay those of an update
        step."""
        everything = torch.arange(len(episodes), device=episodes.tokens.device)
        size = self.config.microbatch_size or self.config.minibatch_size

        def parts(size: int) -> Tensor:
            result = torch.zeros(episodes.mask.shape, device=episodes.tokens.device)
            for rows in episodes.by_length(everything, size):
                part = compute(episodes.select(rows))
                result[rows, : part.shape[1]] = part
            return result

        return fitting("scoring answers", size, parts)


def _joined(parts: Sequence[Experience]) -> Experience:
    """The shares of all processes as one; the seconds are the first one's."""
    if len(parts) == 1:
        return parts[0]
    width = max(part.mask.shape[1] for part in parts)

    def joined(values: list):
        if isinstance(values[0], Tensor):
            fill = [(0, width - value.shape[1]) if value.dim() == 2 else (0, 0) for value in values]
            return torch.cat([torch.nn.functional.pad(v, f) for v, f in zip(values, fill, strict=True)])
        if isinstance(values[0], dict):
            return {name: joined([value[name] for value in values]) for name in values[0]}
        return [item for value in values for item in value]

    names = [field.name for field in fields(Experience) if field.name != "seconds"]
    return Experience(
        **{name: joined([getattr(part, name) for part in parts]) for name in names}, seconds=parts[0].seconds
    )


def _moved(experience: Experience, device: torch.device) -> Experience:
    """The same experience with its tensors on `device`."""

    def moved(value):
        if isinstance(value, Tensor):
            return value.to(device)
        return {name: moved(inner) for name, inner in value.items()} if isinstance(value, dict) else value

    return Experience(**{name: moved(value) for name, value in vars(experience).items()})


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on these small numbers alone (splitmix64 keeps neighbouring seeds apart)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)
