"""The policy with its critic, on a shared trunk or its own, and log-probabilities of answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_utils.models import trunk_and_head

# Share of a microbatch that may be padding before it is split: a CPU computes padding as slowly as anything else, while
# a GPU loses more by small batches.
_PADDING = {"cpu": 0.1, "cuda": 0.5}


@dataclass
class Episodes:
    """B finished episodes as right-padded token rows.

    `tokens` [B, T] is prompt then answer then padding, `prompt_lengths` [B] counts prompt tokens, `mask` [B, R] is True
    at the answer's tokens. With padding on the right only, a causal model needs neither attention mask nor position
    ids.
    """

    tokens: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Tensor) -> Episodes:
        """The given rows, cut to their own longest prompt-plus-answer and longest answer."""
        prompt_lengths, mask = self.prompt_lengths[rows], self.mask[rows]
        answer_lengths = mask.sum(dim=1)
        width = int((prompt_lengths + answer_lengths).max())
        return Episodes(self.tokens[rows, :width], prompt_lengths, mask[:, : int(answer_lengths.max())])

    def by_length(self, rows: Tensor, size: int | None) -> list[Tensor]:
        """`rows` sorted by length, whole where `size` is None, else in groups of at most `size` with little padding."""
        lengths = self.prompt_lengths + self.mask.sum(dim=1)
        order = rows[lengths[rows].argsort()]
        if size is None:
            return [order]
        allowed = _PADDING[self.tokens.device.type]
        groups, start, real = [], 0, 0
        for end, length in enumerate(lengths[order].tolist()):
            count = end - start + 1
            if count > 1 and (count > size or 1 - (real + length) / (length * count) > allowed):
                groups.append(order[start:end])
                start, real = end, 0
            real += length
        return [*groups, order[start:]]


def answer_logprobs(model: nn.Module, episodes: Episodes, temperature: float) -> Tensor:
    """Log-probability of every answer token under a causal LM [B, R]; 0 outside the mask."""
    trunk, head = trunk_and_head(model)
    return _chosen_logprobs(head, _states_before_answers(trunk, episodes), episodes, temperature)


class ActorCritic(nn.Module):
    """A causal language model and its critic.

    The critic is a linear value head, either on the policy's own hidden states (Ziegler et al. 2019), or on those of
    `critic`, a trunk of its own that reads the same tokens (Stiennon et al. 2020, arXiv:2009.01325, section 3.4).
    `value_start` is the head's start (weight [1, D], bias [1]); zeros where it is None.
    """

    def __init__(
        self,
        policy: nn.Module,
        width: int,
        critic: nn.Module | None = None,
        value_start: tuple[Tensor, Tensor] | None = None,
    ):
        super().__init__()
        self.policy, self.critic = policy, critic
        self.value_head = nn.Linear(width, 1)
        # Starting from value 0 the first advantages are the returns themselves, not the noise of a random head.
        weight, bias = value_start or (torch.zeros(1, width), torch.zeros(1))
        self.value_head.load_state_dict({"weight": weight, "bias": bias})

    def forward(
        self, tokens: Tensor, prompt_lengths: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values [B, R] of the answers; tensors rather than `Episodes`, so that DDP can wrap
        this."""
        episodes = Episodes(tokens, prompt_lengths, mask)
        trunk, head = trunk_and_head(self.policy)
        before = _states_before_answers(trunk, episodes)
        logprobs = _chosen_logprobs(head, before, episodes, temperature)
        return logprobs, self.values(episodes, before if self.critic is None else None)

    def values(self, episodes: Episodes, before: Tensor | None = None) -> Tensor:
        """The value before every answer token [B, R]; `before` [N, D] are the states it reads, where they are known."""
        if before is None:
            trunk = self.critic if self.critic is not None else trunk_and_head(self.policy)[0]
            before = _states_before_answers(trunk, episodes)
        return _spread(self.value_head(before).squeeze(-1).float(), episodes.mask)


def _states_before_answers(trunk: nn.Module, episodes: Episodes) -> Tensor:
    """The trunk's states [N, D] from which the N answer tokens are predicted, row by row."""
    states = trunk(input_ids=episodes.tokens, use_cache=False).last_hidden_state
    rows, steps = episodes.mask.nonzero(as_tuple=True)
    return states[rows, episodes.prompt_lengths[rows] + steps - 1]


def _chosen_logprobs(head: nn.Module, before: Tensor, episodes: Episodes, temperature: float) -> Tensor:
    """The language-model head, most of the cost for a vocabulary of 50,257, runs only where an answer token is
    predicted."""
    rows, steps = episodes.mask.nonzero(as_tuple=True)
    answers = episodes.tokens[rows, episodes.prompt_lengths[rows] + steps]
    logits = head(before).float()
    if temperature != 1.0:
        logits = logits / temperature
    return _spread(-nn.functional.cross_entropy(logits, answers, reduction="none"), episodes.mask)


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Values [N] of the answer tokens, row by row, at their places in [B, R]; 0 outside the mask."""
    return torch.zeros(mask.shape, device=flat.device).masked_scatter(mask, flat)
