"""Rewards beside the reward model: fluency, length, and weighted sums of named reward functions."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_utils.data.tokens import continued_tokens, words_of
from rlhf_utils.models.language_model import Episodes, answer_logprobs, language_model, only_tokens_of
from rlhf_utils.platforms.runtime import Device, fitting
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
        template, kind = self.template, self.device.kind
        asked, said = [template.format(p) for p in prompts], [template.completion(r) for r in responses]
        starts, ends = zip(*continued_tokens(self.tokenizer, asked, said), strict=True)
        scores = torch.full((len(starts),), -math.log(language_model(self.model).head.weight.shape[0]))
        spoken = torch.tensor([i for i, response in enumerate(responses) if response.strip()], dtype=torch.long)
        if not len(spoken):
            return scores
        episodes = Episodes.of([starts[i] for i in spoken], [ends[i] for i in spoken], 0, kind)

        def likelihood(size: int) -> Tensor:
            sums = torch.zeros(len(spoken))
            with self.device.autocast():
                for rows in episodes.by_length(torch.arange(len(spoken), device=kind), size):
                    sums[rows.cpu()] = answer_logprobs(self.model, episodes.select(rows), 1.0).sum(dim=1).cpu()
            return sums

        scores[spoken] = fitting("fluency", 16, likelihood) / episodes.mask.sum(dim=1).cpu()
        return scores


class LengthPenalty:
    """Minus the share by which a response is longer than `words` words: -0.5 for half as long again, 0 up to it."""

    def __init__(self, words: int):
        self.words = words

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([-max(0.0, len(words_of(response)) / self.words - 1.0) for response in responses])


class RewardMixture:
    """A weighted sum of named reward functions: `RewardMixture(helpful=(1.0, reward_model), length=(0.2, penalty))`.

    PPO logs the mean of every term by its name, unweighted.
    """

    def __init__(self, **parts: tuple[float, RewardFunction]):
        self.parts = parts

    def terms(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Tensor]:
        """Each part's own rewards [n], by name."""
        scored = {name: reward(prompts, responses) for name, (_, reward) in self.parts.items()}
        return {name: torch.as_tensor(scores, dtype=torch.float32) for name, scores in scored.items()}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum [n] of what `terms` returned."""
        return sum(weight * terms[name] for name, (weight, _) in self.parts.items())

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return self.total(self.terms(prompts, responses))
