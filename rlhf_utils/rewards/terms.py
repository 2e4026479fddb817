"""Rewards beside the reward model: fluency, and weighted sums of named reward functions."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_utils.data.tokens import continued_tokens
from rlhf_utils.models.language_model import Episodes, answer_logprobs, language_model, only_tokens_of
from rlhf_utils.models.precision import fastest
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.settings.template import TEMPLATE, Template

RewardFunction = Callable[[Sequence[str], Sequence[str]], Tensor]


class FluencyReward:
    """Mean log-likelihood of the response under a language model, in nats per token; 0 would be certainty.

    A response without a token has no likelihood and gets that of a uniform guess, the log of 1 / vocabulary.
    """

    def __init__(self, model: PreTrainedModel, tokenizer, device: Device, template: Template = TEMPLATE):
        self.model, self.tokenizer, self.device, self.template = model.eval(), tokenizer, device, template
        only_tokens_of(tokenizer, model)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        asked = [self.template.format(prompt) for prompt in prompts]
        said = [self.template.completion(response) for response in responses]
        starts, ends = zip(*continued_tokens(self.tokenizer, asked, said), strict=True)
        scores = torch.full((len(starts),), -math.log(language_model(self.model).head.weight.shape[0]))
        spoken = torch.tensor([i for i, response in enumerate(responses) if response.strip()], dtype=torch.long)
        if not len(spoken):
            return scores
        episodes = Episodes.of([starts[i] for i in spoken], [ends[i] for i in spoken], 0, self.device.kind)
        with fastest(self.device, self.model).autocast():
            total = lambda part: answer_logprobs(self.model, part, 1.0).sum(dim=1, keepdim=True)  # noqa: E731
            sums = by_parts("fluency", 16, episodes, total)[:, 0]
        scores[spoken] = sums.cpu() / episodes.mask.sum(dim=1).cpu()
        return scores


def by_parts(what: str, most: int, episodes: Episodes, compute: Callable[[Episodes], Tensor]) -> Tensor:
    """`compute` [b, r] of at most `most` episodes of similar length at once, put together to [B, R]; 0 elsewhere."""
    everything = torch.arange(len(episodes), device=episodes.tokens.device)

    def parts(size: int) -> Tensor:
        result = torch.zeros(episodes.mask.shape, device=episodes.tokens.device)
        for rows in episodes.by_length(everything, size):
            part = compute(episodes.select(rows))
            result[rows, : part.shape[1]] = part
        return result

    return fitting(what, most, parts)


class RewardMixture:
    """A weighted sum of named reward functions: `RewardMixture(helpful=(1.0, reward_model), length=(0.2, penalty))`.
    PPO logs the mean of every term by its name, unweighted."""

    def __init__(self, **parts: tuple[float, RewardFunction]):
        self.parts = parts

    def with_terms(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum [n], and each part's own rewards [n] by name."""
        scored = {name: reward(prompts, responses) for name, (_, reward) in self.parts.items()}
        terms = {name: torch.as_tensor(scores, dtype=torch.float32) for name, scores in scored.items()}
        return sum(weight * terms[name] for name, (weight, _) in self.parts.items()), terms

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return self.with_terms(prompts, responses)[0]
