"""What learns in PPO and what it is held to: a policy, trained whole or by adapter, its reference and its critic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rlhf_utils.models.language_model import language_model, only_tokens_of
from rlhf_utils.models.loading import (
    fp32_trainables,
    has_bitsandbytes,
    load_policy,
    load_policy_4bit,
    save_model,
)
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.ppo.actor_critic import ActorCritic
from rlhf_utils.rewards import RewardModel
from rlhf_utils.settings.sections import PPOConfig

Source = str | Path


class Policy(Protocol):
    """A policy in training. `model` computes; only its parameters that require gradients learn."""

    model: nn.Module

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The frozen model that the KL is measured against, usable inside the block."""

    def reset(self) -> None:
        """Back to the weights training started from."""

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write the policy as a plain causal LM that loads with `from_pretrained` alone."""


class FullPolicy:
    """Every weight learns; the reference is a frozen second load of the same model."""

    def __init__(self, source: Source, device: Device):
        self.model: PreTrainedModel = load_policy(source, device)
        self.frozen = load_policy(source, device).eval().requires_grad_(False)

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        yield self.frozen

    def reset(self) -> None:
        self.model.load_state_dict(self.frozen.state_dict())

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        save_model(self.model, tokenizer, folder)


class AdapterPolicy:
    """A LoRA adapter learns, on frozen weights in fp32 or in 4 bits; the reference is the model with the adapter off.

    What is saved is the adapter merged into the fp32 weights. For 4-bit weights these differ from what was trained on
    by the rounding to 4 bits; the adapter itself is saved beside it in `adapter/`. Under 16-bit autocast the frozen
    linear layers are stored in the 16 bits that autocast would cast them to at every token sampled: the same results
    from half the memory.
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
        if device.autocast_dtype is not None:
            _store_frozen(self.model, device.autocast_dtype)
        self._start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        with self.model.disable_adapter():
            yield self.model

    def reset(self) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self._start:
                    parameter.copy_(self._start[name])

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self.model.save_pretrained(folder / "adapter")
        on_cpu = Device("cpu", "", "fp32", self.device.memory_bytes)
        save_model(merge_adapter(load_policy(self.source, on_cpu), folder / "adapter"), tokenizer, folder)


def _store_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the frozen linear layers of `model`, all but its head, in `dtype`; outside of autocast they compute in it
    too."""
    head = language_model(model).head
    for layer in model.modules():
        kept = isinstance(layer, nn.Linear | Conv1D) and layer is not head and layer.weight.dtype == torch.float32
        if kept and not layer.weight.requires_grad:
            layer.to(dtype)
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
            layer.register_forward_hook(
                lambda _, inputs, output: output if torch.is_autocast_enabled(output.device.type) else output.float()
            )


def load_ppo_policy(source: Source, device: Device, config: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> Policy:
    """The policy at `source`, to be trained as `config.method` says; it and its reference say tokens of `tokenizer`
    alone."""
    policy = FullPolicy(source, device) if config.method == "full" else AdapterPolicy(source, device, config)
    with policy.reference() as reference:
        for model in (policy.model, reference):
            only_tokens_of(tokenizer, model)
    return policy


def make_actor_critic(policy: Policy, critic: Source | None, device: Device) -> ActorCritic:
    """`policy` with a value head on its own trunk, or with the reward model at `critic` as its critic.

    A critic's first values are the rewards that the reward model gives to the unfinished answers, in the unit of
    `RewardModel`.
    """
    if critic is None:
        return ActorCritic(policy.model, language_model(policy.model).width).to(device.kind)
    reward = RewardModel.load(critic, device)
    trunk = reward.model.base_model.train()
    weight, bias = _head_in_units(reward)
    return ActorCritic(policy.model, weight.shape[1], trunk, (weight, bias)).to(device.kind)


def reset_critic(actor: ActorCritic, critic: Source | None, device: Device) -> None:
    """Put the critic, and only it, back to its start."""
    if critic is None:
        nn.init.zeros_(actor.value_head.weight)
        nn.init.zeros_(actor.value_head.bias)
        return
    reward = RewardModel.load(critic, device)
    actor.critic.load_state_dict(reward.model.base_model.state_dict())
    weight, bias = _head_in_units(reward)
    actor.value_head.load_state_dict({"weight": weight, "bias": bias})


def _head_in_units(reward: RewardModel) -> tuple[Tensor, Tensor]:
    """The reward model's own linear head, rescaled to give `(logit - mean) / std`."""
    weight = reward.model.score.weight.detach().float() / reward.std
    bias = (
        reward.model.score.bias.detach().float()
        if reward.model.score.bias is not None
        else torch.zeros(1, device=weight.device)
    )
    return weight, (bias - reward.mean) / reward.std
