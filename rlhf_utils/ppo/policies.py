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
from rlhf_utils.platforms.names import Source
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.rewards.reward_model import RewardModel
from rlhf_utils.settings.sections import PPOConfig


class Policy:
    """The causal LM `model` that learns, as `config.method` says whole or by a LoRA adapter on frozen weights in fp32
    or 4 bits. Its reference is a frozen second load of the same model, or the model with the adapter off. Both say
    tokens of `tokenizer` alone."""

    def __init__(self, source: Source, device: Device, config: PPOConfig, tokenizer: PreTrainedTokenizerBase):
        self.source, self.device, self.frozen = source, device, None
        if config.method == "full":
            self.model: PreTrainedModel = load_policy(source, device)
            self.frozen = load_policy(source, device).eval().requires_grad_(False)
        elif config.method == "qlora" and not has_bitsandbytes():
            raise InputError("ppo.method qlora needs bitsandbytes; `pip install bitsandbytes`, or use lora")
        else:
            # An adapter's start is random; it is the seed's, and nobody else's random numbers change by it.
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                model = (load_policy_4bit if config.method == "qlora" else load_policy)(source, device)
                self.model = get_peft_model(model, lora_config(config.lora, "CAUSAL_LM", model.config))
            fp32_trainables(self.model)
        with self.reference() as reference:
            for model in (self.model, reference):
                only_tokens_of(tokenizer, model)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The model that the KL is measured against, usable inside the block."""
        if self.frozen is not None:
            yield self.frozen
        else:
            with self.model.disable_adapter():
                yield self.model

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write the policy as a plain causal LM that loads with `from_pretrained` alone. An adapter is merged into the
        fp32 weights, from which 4-bit ones differ by the rounding, and lies beside it in `adapter/`."""
        if self.frozen is not None:
            return save_model(self.model, tokenizer, folder)
        self.model.save_pretrained(folder / "adapter")
        on_cpu = Device("cpu", "", "fp32", self.device.memory_bytes)
        save_model(merge_adapter(load_policy(self.source, on_cpu), folder / "adapter"), tokenizer, folder)


class ActorCritic(nn.Module):
    """A causal language model and its critic: a linear value head on the policy's own hidden states (Ziegler et al.
    2019), or on those of `reward`'s trunk (Stiennon et al. 2020, arXiv:2009.01325, section 3.4), whose first values are
    the rewards that it gives to the unfinished responses."""

    def __init__(self, policy: nn.Module, reward: RewardModel | None = None):
        super().__init__()
        self.policy, self.critic = policy, reward and reward.model.base_model.train()
        if reward is None:
            self.value_head = nn.Linear(language_model(policy).width, 1)
            # Starting from value 0 the first advantages are the returns themselves, not the noise of a random head.
            for parameter in self.value_head.parameters():
                nn.init.zeros_(parameter)
        else:
            score = reward.model.score
            self.value_head = nn.Linear(score.in_features, 1)
            self.value_head.weight.data = score.weight.detach().float() / reward.std
            bias = torch.zeros_like(self.value_head.bias) if score.bias is None else score.bias.detach().float()
            self.value_head.bias.data = (bias.to(score.weight.device) - reward.mean) / reward.std

    def forward(
        self, tokens: Tensor, prompt_lengths: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values [B, R] of the responses; tensors rather than `Episodes`, so that DDP can wrap
        this."""
        episodes, parts = Episodes(tokens, prompt_lengths, mask), language_model(self.policy)
        before = states_before_answers(parts.trunk, episodes)
        logprobs = chosen_logprobs(parts, before, episodes, temperature)
        return logprobs, spread(self.value(before), mask) if self.critic is None else self.values(episodes)

    def values(self, episodes: Episodes) -> Tensor:
        """The separate critic's value before every response token [B, R]."""
        return spread(self.value(states_before_answers(self.critic, episodes)), episodes.mask)

    def value(self, states: Tensor) -> Tensor:
        """The value head on states [..., D], in fp32: rollout and learning have to read the same value."""
        return in_fp32(self.value_head, states).squeeze(-1)
