"""The policy with its critic, on a shared trunk or its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_utils.models.language_model import (
    Episodes,
    chosen_logprobs,
    language_model,
    spread,
    states_before_answers,
)


class ValueHead(nn.Linear):
    """One number per state, in fp32 also inside of autocast: rollout and learning have to read the same value."""

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return super().forward(states.float())


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
        self.value_head = ValueHead(width, 1)
        # Starting from value 0 the first advantages are the returns themselves, not the noise of a random head.
        weight, bias = value_start or (torch.zeros(1, width), torch.zeros(1))
        self.value_head.load_state_dict({"weight": weight, "bias": bias})

    def forward(
        self, tokens: Tensor, prompt_lengths: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values [B, R] of the answers; tensors rather than `Episodes`, so that DDP can wrap
        this."""
        episodes = Episodes(tokens, prompt_lengths, mask)
        parts = language_model(self.policy)
        before = states_before_answers(parts.trunk, episodes)
        logprobs = chosen_logprobs(parts, before, episodes, temperature)
        return logprobs, self.values(episodes, before if self.critic is None else None)

    def values(self, episodes: Episodes, before: Tensor | None = None) -> Tensor:
        """The value before every answer token [B, R]; `before` [N, D] are the states it reads, where they are known."""
        if before is None:
            trunk = self.critic if self.critic is not None else language_model(self.policy).trunk
            before = states_before_answers(trunk, episodes)
        return spread(self.value_head(before).squeeze(-1), episodes.mask)
