"""A causal language model as what everything here reads from it: the trunk's states, and logits in fp32.

Logits may be large: those of the public GPT-2 lie between -30 and -140, where one step of bf16 is 0.5 nats and one of
fp16 0.06. So the head computes in fp32 and outside of autocast, whatever precision the trunk has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlhf_utils.platforms.errors import InputError

# The logit of what cannot be sampled. Finite, for 0 times infinity in an entropy is no number.
_NEVER = -1e9
# Share of a microbatch that may be padding before it is split: a GPU loses more by small batches than by padding.
_PADDING = {"cpu": 0.1, "cuda": 0.5}


@dataclass(frozen=True)
class LanguageModel:
    """Trunk and head of a causal LM (inside a peft wrapper the adapted ones). Its logits are `scale` times what the
    head gives, held within plus and minus `cap` by tanh; `unknown` [V] is True at rows that stand for no token."""

    trunk: nn.Module
    head: nn.Module
    scale: float = 1.0
    cap: float | None = None
    unknown: Tensor | None = None

    @property
    def width(self) -> int:
        """Size D of the states that the head reads; `config.hidden_size` is another one in OPT-350m."""
        return self.head.weight.shape[1]

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., V] in fp32 for the trunk's last states [..., D], also inside of autocast."""
        logits = in_fp32(self.head, states)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        if self.unknown is not None:
            logits = logits.masked_fill(self.unknown.to(logits.device), _NEVER)
        return logits


def in_fp32(layer: nn.Module, states: Tensor) -> Tensor:
    """The linear `layer` on `states`, in fp32 and outside of autocast, whatever its weights are stored in."""
    with torch.autocast(states.device.type, enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        return nn.functional.linear(states.float(), layer.weight.float(), bias)


# The parts of each model, found and checked once.
_known: WeakKeyDictionary[nn.Module, LanguageModel] = WeakKeyDictionary()


def language_model(model: nn.Module) -> LanguageModel:
    """The parts of a causal LM, also inside a peft wrapper (its adapters stay active). The first time, its own logits
    for a few tokens are compared with those computed here; InputError where they differ, or it is no causal LM."""
    if (inner := unwrapped(model)) in _known:
        return _known[inner]
    trunk, head, config = inner.base_model, inner.get_output_embeddings(), inner.config.get_text_config()
    name, was_training = type(inner).__name__, inner.training
    if trunk is inner or head is None:
        raise InputError(f"{name} is no causal language model with a head of its own; choose another")
    # Cohere multiplies its logits, Granite divides them, and Gemma 2 caps them.
    scale = getattr(config, "logit_scale", None) or 1.0 / getattr(config, "logits_scaling", 1.0)
    parts = LanguageModel(trunk, head, scale, getattr(config, "final_logit_softcapping", None))
    tokens = torch.arange(1, 9, device=head.weight.device)[None]
    inner.eval()
    with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
        # The class's forward, for a trainer leaves one in the model that computes in the trainer's precision.
        own = type(inner).forward(inner, input_ids=tokens, use_cache=False).logits
        found = parts.logits(trunk(input_ids=tokens, use_cache=False).last_hidden_state)
    inner.train(was_training)
    # Within 16 steps of the model's own floating-point format. Models with a state (Mamba) know no padding on the left.
    if inner._is_stateful or not (found - own).abs().max() <= 16 * torch.finfo(own.dtype).eps * own.abs().max():
        raise InputError(f"{name} cannot be trained here: its logits are no numbers, or not its head's; choose another")
    return _known.setdefault(inner, parts)


def positions_named(model: nn.Module) -> nn.Module:
    """`model`, whose trunk from now on counts the positions of rows that are padded on the left from their first token,
    where whoever calls it names none: trl's trainers that sample do not."""

    def name_positions(module, args, inputs):
        mask, known = inputs.get("attention_mask"), ("position_ids", "past_key_values")
        if mask is not None and mask.dim() == 2 and not any(inputs.get(name) is not None for name in known):
            inputs["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return args, inputs

    language_model(model).trunk.register_forward_pre_hook(name_positions, with_kwargs=True)
    return model


def only_tokens_of(tokenizer, model: nn.Module) -> None:
    """From now on `model` never says rows of its vocabulary that `tokenizer` lacks: embeddings are often padded."""
    parts = language_model(model)
    unknown = torch.ones(parts.head.weight.shape[0], dtype=torch.bool, device=parts.head.weight.device)
    unknown[[entry for entry in tokenizer.get_vocab().values() if entry < len(unknown)]] = False
    _known[unwrapped(model)] = replace(parts, unknown=unknown if unknown.any() else None)


def eos_ids(model: nn.Module) -> list[int]:
    """The tokens that end a text, as a model names them: none, one or several."""
    settings = getattr(model, "generation_config", None), model.config.get_text_config()
    named = [getattr(setting, "eos_token_id", None) for setting in settings]
    return [end for ends in named if ends is not None for end in (ends if isinstance(ends, list | tuple) else [ends])]


def end_ids(tokenizer, model: nn.Module) -> list[int]:
    """The tokens that end a response: the tokenizer's EOS and special ones that the model names (Llama 3 has three)."""
    # A configuration's default may be any word of this tokenizer.
    special = {entry for entry, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = tokenizer.eos_token_id
    return [end, *sorted({*eos_ids(unwrapped(model))} & special - {end})]


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside a peft wrapper; `model` itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token lists as one right-padded tensor [B, T] and the lengths [B]."""
    rows = [torch.tensor(row, dtype=torch.long) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id), torch.tensor([*map(len, rows)])


@dataclass
class Episodes:
    """B finished episodes as right-padded token rows, for which a causal model needs neither mask nor position ids:
    `tokens` [B, T] is prompt, answer, padding; `prompt_lengths` [B] in tokens; `mask` [B, R] is True in answers."""

    tokens: Tensor
    prompt_lengths: Tensor
    mask: Tensor

    @classmethod
    def of(cls, prompts: Sequence[list[int]], answers: Sequence[list[int]], pad_id: int, device) -> "Episodes":
        """The episodes of prompts and answers as token ids."""
        tokens, _ = right_padded([p + a for p, a in zip(prompts, answers, strict=True)], pad_id)
        prompt_lengths, lengths = (torch.tensor([*map(len, rows)]) for rows in (prompts, answers))
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return cls(tokens.to(device), prompt_lengths.to(device), mask.to(device))

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Tensor) -> "Episodes":
        """The given rows, cut to their own longest prompt-plus-answer and longest answer."""
        prompt_lengths, mask = self.prompt_lengths[rows], self.mask[rows]
        lengths = mask.sum(dim=1)
        width = int((prompt_lengths + lengths).max())
        return Episodes(self.tokens[rows, :width], prompt_lengths, mask[:, : int(lengths.max())])

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
    parts = language_model(model)
    return chosen_logprobs(parts, states_before_answers(parts.trunk, episodes), episodes, temperature)


def states_before_answers(trunk: nn.Module, episodes: Episodes) -> Tensor:
    """The trunk's states [N, D] from which the N answer tokens are predicted, row by row."""
    states = trunk(input_ids=episodes.tokens, use_cache=False).last_hidden_state
    rows, steps = episodes.mask.nonzero(as_tuple=True)
    return states[rows, episodes.prompt_lengths[rows] + steps - 1]


def chosen_logprobs(parts: LanguageModel, before: Tensor, episodes: Episodes, temperature: float) -> Tensor:
    """`answer_logprobs` from these states [N, D]: the costly head runs only where an answer token is predicted."""
    rows, steps = episodes.mask.nonzero(as_tuple=True)
    answers = episodes.tokens[rows, episodes.prompt_lengths[rows] + steps]
    logits = parts.logits(before)
    if temperature != 1.0:
        logits = logits / temperature
    return spread(-nn.functional.cross_entropy(logits, answers, reduction="none"), episodes.mask)


def spread(flat: Tensor, mask: Tensor) -> Tensor:
    """Values [N] of the answer tokens, row by row, at their places in [B, R]; 0 outside the mask."""
    return torch.zeros(mask.shape, device=flat.device).masked_scatter(mask, flat)
