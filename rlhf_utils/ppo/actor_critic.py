"""The policy with a value head on its own trunk, and the log-probabilities of a reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_utils.models import trunk_and_head


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


def answer_logprobs(
    model: nn.Module, episodes: Episodes, temperature: float, value_head: nn.Module | None = None
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of every answer token [B, R] and, with a value head, the value before it [B, R]; 0 outside
    the mask.

    The language-model head, most of the cost for a vocabulary of 50,257, runs only at the positions that predict an
    answer token.
    """
    trunk, head = trunk_and_head(model)
    states = trunk(input_ids=episodes.tokens, use_cache=False).last_hidden_state
    rows, steps = episodes.mask.nonzero(as_tuple=True)
    columns = episodes.prompt_lengths[rows] + steps
    before = states[rows, columns - 1]
    distribution = torch.log_softmax(head(before).float() / temperature, dim=-1)
    chosen = distribution.gather(1, episodes.tokens[rows, columns][:, None]).squeeze(1)
    logprobs = torch.zeros(episodes.mask.shape, device=chosen.device).index_put((rows, steps), chosen)
    if value_head is None:
        return logprobs, None
    values = torch.zeros_like(logprobs).index_put((rows, steps), value_head(before).squeeze(-1).float())
    return logprobs, values


class ActorCritic(nn.Module):
    """A causal language model and a linear value head that reads the same hidden states (Ziegler et al. 2019)."""

    def __init__(self, policy: PreTrainedModel):
        super().__init__()
        self.policy = policy
        self.value_head = nn.Linear(policy.config.hidden_size, 1)
        self.reset_value_head()

    def reset_value_head(self) -> None:
        """Put the value head back to its start."""
        # Starting from value 0 the first advantages are the returns themselves, not the noise of a random head.
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self, tokens: Tensor, prompt_lengths: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values [B, R] of the answers; tensors rather than `Episodes`, so that DDP can wrap
        this."""
        return answer_logprobs(self.policy, Episodes(tokens, prompt_lengths, mask), temperature, self.value_head)
