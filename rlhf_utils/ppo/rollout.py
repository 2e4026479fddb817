"""Collecting experience: sample responses, score them, and shape the rewards the update learns from."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.generation import Answer, Sampled, sample_answers
from rlhf_utils.models.language_model import Episodes, answer_logprobs
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.runtime import fitting
from rlhf_utils.ppo.objective import advantages_and_returns, kl_estimate, masked_whiten, shaped_rewards
from rlhf_utils.ppo.policies import ActorCritic, Policy
from rlhf_utils.rewards.terms import RewardFunction, RewardMixture
from rlhf_utils.settings.sections import PPOConfig
from rlhf_utils.settings.template import TEMPLATE, Template


@dataclass
class Rollout:
    """B scored episodes with R response positions, and what is to be learnt from them.

    `scores`, `gold` (None without a judge) and each of a mixture's unweighted `terms` are [B]; the other tensors are
    [B, R] and 0 outside `episodes.mask`. `rewards` are what is paid per token, the KL penalty in it; `spread`, the
    standard deviation of the returns (1 where they are all the same), is the unit the rewards are in. `seconds` is the
    time per phase, `figures` what the rollout measures of the policy.
    """

    prompts: list[str]
    answers: list[Answer]
    episodes: Episodes
    scores: Tensor
    gold: Tensor | None
    terms: dict[str, Tensor]
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    entropy: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    spread: float
    seconds: dict[str, float]
    figures: dict = field(default_factory=dict)


def prompt_indices(count: int, config: PPOConfig, update: int) -> list[int]:
    """Which of `count` prompts update `update` answers: each epoch over the prompts is a new permutation, and no prompt
    is skipped."""
    size, first = config.rollout_batch_size, update * config.rollout_batch_size
    epochs = range(first // count, (first + size - 1) // count + 1)
    order = torch.cat([torch.randperm(count, generator=seeded(config.seed, 1, epoch)) for epoch in epochs])
    return order[first % count :][:size].tolist()


def sample_episodes(
    policy: nn.Module, tokenizer, prompts: Sequence[str], config: PPOConfig, update: int, template=TEMPLATE, **more
) -> tuple[list[Answer], Episodes, Sampled]:
    """One response to each of this process's `prompts`, with the random numbers of `config.seed` and `update`: as text
    with its tokens, as token rows after their prompts, and what the sampler knows of every token."""
    rows = start_tokens(tokenizer, [template.format(prompt) for prompt in prompts])
    place = (processes.index() * len(prompts), processes.count() * len(prompts))
    how = (config.max_new_tokens, config.temperature, seeded(config.seed, 2, update), template)
    answers, sampled = sample_answers(policy, tokenizer, rows, *how, place=place, **more)
    episodes = Episodes.of(rows, [a.tokens for a in answers], tokenizer.pad_token_id, sampled.tokens.device)
    return answers, episodes, sampled


@dataclass
class RolloutCollector:
    """Makes rollouts. Which prompts update `u` answers and which random numbers it draws depend on the seed and `u`
    alone, not on how many processes share the work."""

    prompts: list[str]
    tokenizer: PreTrainedTokenizerBase
    reward_function: RewardFunction
    judge: RewardFunction | None
    policy: Policy
    config: PPOConfig
    template: Template

    @torch.no_grad()
    def collect(self, actor: ActorCritic, update: int, kl_coefficient: float) -> Rollout:
        """Sample, score and shape one batch with the present policy.

        Each process samples and scores its share of the prompts; then all of them hold the whole rollout, so that
        advantages are whitened over all of it and a minibatch is the same however many processes divide it.
        """
        config, device = self.config, actor.value_head.weight.device
        mine, seconds = self._share(actor, update)
        rows = [row for part in processes.gathered(mine) for row in part]
        prompts, answers, scores, gold, terms, *columns = map(list, zip(*rows, strict=True))
        logprobs, reference_logprobs, values, entropy = (pad_sequence(c, batch_first=True).to(device) for c in columns)
        starts = start_tokens(self.tokenizer, [self.template.format(prompt) for prompt in prompts])
        episodes = Episodes.of(starts, [a.tokens for a in answers], self.tokenizer.pad_token_id, device)
        mask, scores = episodes.mask, torch.stack(scores).to(device)
        # What the policy is paid: scaled, clipped, and less where the response does not end.
        paid = scores * config.reward_scale
        if config.reward_clip is not None:
            paid = paid.clamp(-config.reward_clip, config.reward_clip)
        unfinished = torch.tensor([not answer.ended for answer in answers], device=device)
        paid = paid - config.missing_eos_penalty * unfinished.float()
        if update == 0 and actor.critic is None:
            # A critic that knows nothing expects the mean of the first rewards: raw scores may lie far from 0, and that
            # distance would be the larger part of every advantage until the critic has learnt it.
            change = paid.mean() - actor.value_head.bias
            values = (values + change).masked_fill(~mask, 0.0)
            actor.value_head.bias.add_(change)
        rewards = shaped_rewards(paid, kl_estimate(logprobs, reference_logprobs, "k1"), mask, kl_coefficient)
        advantages, returns = advantages_and_returns(rewards, values, mask, config.gamma, config.gae_lambda)
        spread = returns[mask].std(correction=0).item() or 1.0
        if config.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        kept = (logprobs, reference_logprobs, values, entropy, rewards, advantages, returns)
        gold = torch.stack(gold) if self.judge else None
        terms = {name: torch.stack([term[name] for term in terms]) for name in terms[0]}
        return Rollout(prompts, answers, episodes, scores, gold, terms, *kept, spread, seconds)

    def _share(self, actor: ActorCritic, update: int) -> tuple[list[tuple], dict[str, float]]:
        """This process's share of the episodes of `update`, and the seconds of each phase.

        An episode is prompt, answer, score, gold, terms, and [T] for its T tokens log-probabilities of policy and
        reference, values and entropy; tensors on the CPU.
        """
        config, clock = self.config, [time.perf_counter()]
        indices = prompt_indices(len(self.prompts), config, update)
        prompts = [self.prompts[i] for i in indices[processes.share(len(indices))]]
        how = (actor.policy, self.tokenizer, prompts, config, update, self.template)
        answers, episodes, sampled = sample_episodes(*how, keep_hidden=actor.critic is None)
        clock.append(time.perf_counter())
        texts, terms = [answer.text for answer in answers], {}
        if isinstance(self.reward_function, RewardMixture):
            terms = self.reward_function.terms(prompts, texts)
            scores = self.reward_function.total(terms)
        else:
            scores = self.reward_function(prompts, texts)
        scores = _checked(scores, prompts, texts, update)
        clock.append(time.perf_counter())
        with self.policy.reference() as reference:
            reference_logprobs = self._by_parts(episodes, lambda p: answer_logprobs(reference, p, config.temperature))
        values = actor.value(sampled.hidden) if actor.critic is None else self._by_parts(episodes, actor.values)
        clock.append(time.perf_counter())
        seconds = dict(zip(("sampling", "scoring", "reference"), np.diff(clock).tolist(), strict=True))
        seconds["learning"] = 0.0
        judged = self.judge(prompts, texts) if self.judge else [math.nan] * len(prompts)
        gold = torch.as_tensor(judged, dtype=torch.float32, device="cpu")
        columns = [
            # Copies: a view would take the whole column along to the other processes.
            [row[: len(answer.tokens)].clone() for row, answer in zip(column.cpu(), answers, strict=True)]
            for column in (sampled.logprobs, reference_logprobs, values, sampled.entropy)
        ]
        parts = [{name: term[i].cpu() for name, term in terms.items()} for i in range(len(answers))]
        return list(zip(prompts, answers, scores.cpu(), gold, parts, *columns, strict=True)), seconds

    def _by_parts(self, episodes: Episodes, compute: Callable[[Episodes], Tensor]) -> Tensor:
        """`compute` of all episodes [B, R], in minibatches by length, with the memory of an update step."""
        everything = torch.arange(len(episodes), device=episodes.tokens.device)

        def parts(size: int) -> Tensor:
            result = torch.zeros(episodes.mask.shape, device=episodes.tokens.device)
            for rows in episodes.by_length(everything, size):
                part = compute(episodes.select(rows))
                result[rows, : part.shape[1]] = part
            return result

        return fitting("scoring answers", self.config.microbatch_size or self.config.minibatch_size, parts)


def _checked(returned, prompts: list[str], texts: list[str], update: int) -> Tensor:
    """What a reward function returned, as a tensor [B]; raises TrainingError where it is no finite number for each."""
    scores, told = torch.as_tensor(returned, dtype=torch.float32), f"update {update}: the reward function returned"
    if scores.shape != (len(texts),):
        raise TrainingError(f"{told} shape {tuple(scores.shape)} for {len(texts)} responses; one float each is wanted")
    for score, prompt, text in zip(scores.tolist(), prompts, texts, strict=True):
        if not math.isfinite(score):
            where = f"the response {text[:80]!r} to the prompt {prompt[:80]!r}"
            raise TrainingError(f"{told} {score} for {where}; a reward must be finite")
    return scores


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream depends on these small numbers alone (splitmix64 keeps neighbouring seeds apart)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return torch.Generator().manual_seed(state % 2**63)
