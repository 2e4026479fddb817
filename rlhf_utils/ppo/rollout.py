"""Collecting experience: sample responses, score them, and shape the rewards the update learns from."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.generation import Answer, Sampled, sample_answers
from rlhf_utils.models.language_model import Episodes, answer_logprobs
from rlhf_utils.models.precision import rounded_once
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.ppo import objective
from rlhf_utils.ppo.policies import ActorCritic
from rlhf_utils.rewards.terms import RewardFunction, RewardMixture, by_parts
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

    def measured(self, update: int, kl_coefficient: float) -> dict:
        """What the rollout says of the policy after `update` updates; KL is in nats per response, entropy per token.

        `kl` is the KL of the sampled distribution, at the temperature of the training; `objective` is the mean of what
        a response is paid, after scale, clip, the penalty of a missing EOS and the price of its KL.
        """
        mask, episodes = self.episodes.mask, len(self.scores)
        kl = (objective.kl_estimate(self.logprobs, self.reference_logprobs, name) for name in ("k1", "k3"))
        k1, k3 = (estimate.masked_fill(~mask, 0.0).sum(dim=1).mean().item() for estimate in kl)
        variance = objective.explained_variance(self.values, self.returns, mask)
        return {
            "update": update,
            "episodes": (update + 1) * episodes,
            "reward": self.scores.mean().item(),
            "reward_std": self.scores.std(correction=0).item(),
            "reward_terms": {name: term.mean().item() for name, term in self.terms.items()},
            "kl": k1,
            "kl_k3": k3,
            "kl_coefficient": kl_coefficient,
            "objective": self.rewards.sum(dim=1).mean().item(),
            "entropy": objective.masked_mean(self.entropy, mask).item(),
            "explained_variance": variance if math.isfinite(variance) else None,
            "response_tokens": int(mask.sum()) / episodes,
            "eos_rate": sum(answer.ended for answer in self.answers) / episodes,
            "gold": None if self.gold is None else self.gold.mean().item(),
            "gold_std": None if self.gold is None else self.gold.std(correction=0).item(),
        }

    def samples(self, update: int, most: int = 4) -> list[dict]:
        """The first responses, as they are written down."""
        shown = list(zip(self.prompts, self.answers, self.scores.tolist(), strict=True))[:most]
        return [{"update": update, "prompt": p, "response": a.text, "reward": score} for p, a, score in shown]


def prompt_indices(count: int, config: PPOConfig, update: int) -> list[int]:
    """Which of `count` prompts update `update` answers: each epoch over them is a new permutation, none is skipped."""
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
        limit = math.inf if config.reward_clip is None else config.reward_clip
        paid = (scores * config.reward_scale).clamp(-limit, limit)
        unfinished = torch.tensor([not answer.ended for answer in answers], device=device)
        paid = paid - config.missing_eos_penalty * unfinished.float()
        if update == 0 and actor.critic is None:
            # A critic that knows nothing expects the mean of the first rewards: raw scores may lie far from 0, and that
            # distance would be the larger part of every advantage until the critic has learnt it.
            change = paid.mean() - actor.value_head.bias
            values = (values + change).masked_fill(~mask, 0.0)
            actor.value_head.bias.add_(change)
        kl = objective.kl_estimate(logprobs, reference_logprobs, "k1")
        rewards = objective.shaped_rewards(paid, kl, mask, kl_coefficient)
        advantages, returns = objective.advantages_and_returns(rewards, values, mask, config.gamma, config.gae_lambda)
        spread = returns[mask].std(correction=0).item() or 1.0
        if config.whiten_advantages:
            advantages = objective.masked_whiten(advantages, mask)
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
        texts, reward = [answer.text for answer in answers], self.reward_function
        mixed = isinstance(reward, RewardMixture)
        scores, terms = reward.with_terms(prompts, texts) if mixed else (reward(prompts, texts), {})
        scores = _checked(scores, prompts, texts, update)
        clock.append(time.perf_counter())
        # With the memory of an update step.
        how = ("scoring answers", config.microbatch_size or config.minibatch_size, episodes)
        with actor.trained.reference() as reference, rounded_once(reference):
            reference_logprobs = by_parts(*how, lambda part: answer_logprobs(reference, part, config.temperature))
        values = actor.value(sampled.hidden) if actor.critic is None else by_parts(*how, actor.values)
        clock.append(time.perf_counter())
        phases = ("sampling", "scoring", "reference", "learning")
        seconds = dict(zip(phases, [*np.diff(clock).tolist(), 0.0], strict=True))
        judged = self.judge(prompts, texts) if self.judge else [math.nan] * len(prompts)
        gold = torch.as_tensor(judged, dtype=torch.float32, device="cpu")
        columns = [
            # Copies: a view would take the whole column along to the other processes.
            [row[: len(answer.tokens)].clone() for row, answer in zip(column.cpu(), answers, strict=True)]
            for column in (sampled.logprobs, reference_logprobs, values, sampled.entropy)
        ]
        parts = [{name: term[i].cpu() for name, term in terms.items()} for i in range(len(answers))]
        return list(zip(prompts, answers, scores.cpu(), gold, parts, *columns, strict=True)), seconds


def _checked(returned, prompts: list[str], texts: list[str], update: int) -> Tensor:
    """What a reward function returned, as a tensor [B]; raises TrainingError where it is no finite number for each."""
    scores, told = torch.as_tensor(returned, dtype=torch.float32), f"update {update}: the reward function returned"
    if scores.shape != (len(texts),):
        raise TrainingError(f"{told} shape {tuple(scores.shape)} for {len(texts)} responses; one float each is wanted")
    for i in scores.isfinite().logical_not().nonzero():
        where = f"the response {texts[i][:80]!r} to the prompt {prompts[i][:80]!r}"
        raise TrainingError(f"{told} {scores[i].item()} for {where}; a reward must be finite")
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
