"""What learns in PPO: a policy, whole or by adapter, the reference it is held to, and its critic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_utils.models.language_model import (
    Episodes,
    chosen_logprobs,
    in_fp32,
    language_model,
    only_tokens_of,
    spread,
    states_before_answers,
)
from rlhf_utils.models.loading import fp32_trainables, has_bitsandbytes, load_policy, load_policy_4bit, save_model
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.rewards.reward_model import RewardModel
from rlhf_utils.settings.sections import PPOConfig

Source = str | Path


class FullPolicy:
    """Every weight of `model` learns; the reference is a frozen second load of the same model."""

    def __init__(self, source: Source, device: Device):
        self.model: PreTrainedModel = load_policy(source, device)
        self.frozen = load_policy(source, device).eval().requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The frozen model that the KL is measured against, usable inside the block."""
        yield self.frozen

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write the policy as a plain causal LM that loads with `from_pretrained` alone."""
        save_model(self.model, tokenizer, folder)


class AdapterPolicy:
    """A LoRA adapter learns, on frozen weights in fp32 or in 4 bits; the reference is the model with the adapter off.

    What is saved is the adapter merged into the fp32 weights; from 4-bit weights these differ by the rounding, and the
    adapter itself lies beside it in `adapter/`.
    """

    def __init__(self, source: Source, device: Device, config: PPOConfig):
        if config.method == "qlora" and not has_bitsandbytes():
            raise InputError("ppo.method qlora needs bitsandbytes; `pip install bitsandbytes`, or use lora")
        load = load_policy_4bit if config.method == "qlora" else load_policy
        self.source, self.device = source, device
        # An adapter's start is random; it is the seed's, and nobody else's random numbers change by it.
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            model = load(source, device)
            self.model = get_peft_model(model, lora_config(config.lora, "CAUSAL_LM", model.config))
        fp32_trainables(self.model)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The model without its adapter, usable inside the block."""
        with self.model.disable_adapter():
            yield self.model

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write the policy as a plain causal LM that loads with `from_pretrained` alone."""
        self.model.save_pretrained(folder / "adapter")
        on_cpu = Device("cpu", "", "fp32", self.device.memory_bytes)
        save_model(merge_adapter(load_policy(self.source, on_cpu), folder / "adapter"), tokenizer, folder)


Policy = FullPolicy | AdapterPolicy


def load_ppo_policy(source: Source, device: Device, config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """The policy at `source`, to be trained as `config.method` says; it and its reference say tokens of `tokenizer`
    alone."""
    policy = FullPolicy(source, device) if config.method == "full" else AdapterPolicy(source, device, config)
    with policy.reference() as reference:
        for model in (policy.model, reference):
            only_tokens_of(tokenizer, model)
    return policy


class ActorCritic(nn.Module):
    """A causal language model and its critic.

    The critic is a linear value head, on the policy's own hidden states (Ziegler et al. 2019) or on those of `critic`,
    a trunk of its own (Stiennon et al. 2020, arXiv:2009.01325, section 3.4). `value_start` is the head's start (weight
    [1, D], bias [1]); zeros where it is None.
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
        """Log-probabilities and values [B, R] of the responses; tensors rather than `Episodes`, so that DDP can wrap
        this."""
        episodes = Episodes(tokens, prompt_lengths, mask)
        parts = language_model(self.policy)
        before = states_before_answers(parts.trunk, episodes)
        logprobs = chosen_logprobs(parts, before, episodes, temperature)
        return logprobs, self.values(episodes, before if self.critic is None else None)

    def values(self, episodes: Episodes, before: Tensor | None = None) -> Tensor:
        """The value before every response token [B, R]; `before` [N, D] are the states it reads, where known."""
        if before is None:
            trunk = self.critic if self.critic is not None else language_model(self.policy).trunk
            before = states_before_answers(trunk, episodes)
        return spread(self.value(before), episodes.mask)

    def value(self, states: Tensor) -> Tensor:
        """The value head on states [..., D], in fp32: rollout and learning have to read the same value."""
        return in_fp32(self.value_head, states).squeeze(-1)


def make_actor_critic(policy: Policy, critic: Source | None, device: Device) -> ActorCritic:
    """`policy` with a value head on its own trunk, or with the reward model at `critic` as its critic.

    A critic's first values are the rewards that the reward model gives to the unfinished responses.
    """
    if critic is None:
        return ActorCritic(policy.model, language_model(policy.model).width).to(device.kind)
    reward = RewardModel.load(critic, device)
    head = reward.model.score
    bias = head.bias.detach().float() if head.bias is not None else torch.zeros(1, device=head.weight.device)
    start = head.weight.detach().float() / reward.std, (bias - reward.mean) / reward.std
    return ActorCritic(policy.model, head.in_features, reward.model.base_model.train(), start).to(device.kind)
