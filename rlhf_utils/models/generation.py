"""Sampling responses: one sampler for PPO, for evaluation and for the playground."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from rlhf_utils.data.tokens import continuations, start_tokens
from rlhf_utils.models.language_model import end_ids, language_model, only_tokens_of
from rlhf_utils.models.precision import fastest, rounded_once
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.platforms.runtime import Device, give_back_memory
from rlhf_utils.settings.sections import GenerationSettings
from rlhf_utils.settings.template import TEMPLATE, Template

# When no more than this share of the rows goes on, the others are taken out of the batch: on a CPU each row costs.
_COMPACT_AT = {"cpu": 0.9, "cuda": 0.5}
# Tokens that there is room for in a cache beyond those in it, where it is made longer.
_MORE = 64
# Tokens between two looks at which rows have ended. On a GPU a look waits for all that was asked of it.
_LOOK_EVERY = {"cpu": 1, "cuda": 8}


class Sampled(NamedTuple):
    """What sampling B responses of at most R tokens gives; all [B, R], right-padded. Only `mask` says what is real.
    `hidden` [B, R, D] is None unless asked for, `ended` [B] True where a response ended with EOS."""

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    entropy: Tensor
    hidden: Tensor | None
    ended: Tensor


class Answer(NamedTuple):
    """One sampled response. `tokens` includes the EOS when `ended`; `text` never does."""

    text: str
    tokens: list[int]
    ended: bool


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: str | torch.device) -> tuple[Tensor, Tensor]:
    """Token lists as one left-padded tensor [B, P] and its boolean mask."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], dtype=torch.long)
    mask = torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])
    return tokens.to(device), mask.to(device)


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    temperature: float,
    eos_id: int | Sequence[int],
    generator: torch.Generator,
    keep_hidden: bool = False,
    place: tuple[int, int] | None = None,
) -> Sampled:
    """Sample one response per row of the left-padded `prompts` [B, P] from the unmodified distribution at
    `temperature`: no top-k and no repetition penalty, so the kept log-probabilities are those of a fresh forward pass.

    A response ends with its first EOS, which belongs to it; `eos_id` may name several. `generator` lives on the CPU, so
    that a seed draws the same numbers on every device. `keep_hidden` also returns the trunk's state from which each
    token was drawn (a value head reads it). `place` (first, of): draw the numbers that these prompts would get as those
    from `first` on of a batch of `of`. Where memory runs out, fewer rows are sampled at once, with the same numbers.
    """
    # Drawn all at once, so that a generator is left the same however early the responses end.
    first, of = place or (0, len(prompts))
    draws = torch.rand((max_new_tokens, of, 1), generator=generator)[:, first : first + len(prompts)]
    eos_ids = [eos_id] if isinstance(eos_id, int) else list(eos_id)

    def parts(size: int) -> list[tuple[Tensor | None, ...]]:
        groups, how = torch.arange(len(prompts)).split(size), (temperature, eos_ids, keep_hidden)
        return [_sample_rows(model, prompts[rows], prompt_mask[rows], draws[:, rows], *how) for rows in groups]

    language_model(model)  # which checks it, once, in the precision it is stored in
    with rounded_once(model):
        columns = zip(*fitting("sampling", len(prompts), parts), strict=True)
    tokens, mask, *columns = (torch.cat(column) if column[0] is not None else None for column in columns)
    # Tokens drawn after a row's EOS, while it waited to be taken out, are not part of its response.
    ends = torch.isin(tokens, torch.tensor(eos_ids, device=tokens.device)) & mask
    mask &= ends.long().cumsum(dim=1) - ends.long() == 0
    width, ended = int(mask.sum(dim=1).max()), (ends & mask).any(dim=1)
    mask = mask[:, :width]
    tokens, logprobs, entropy, hidden = (None if found is None else found[:, :width] for found in (tokens, *columns))
    logprobs, entropy = logprobs.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)
    return Sampled(tokens.masked_fill(~mask, eos_ids[0]), mask, logprobs, entropy, hidden, ended)


def _sample_rows(model, prompts: Tensor, prompt_mask: Tensor, uniform: Tensor, temperature, eos_ids, keep_hidden):
    """Tokens, mask, log-probabilities and entropy [B, R], and states [B, R, D], of these rows sampled at once with the
    random numbers `uniform` [R, B, 1]; the mask also holds what was drawn after an EOS."""
    parts, device, shape = language_model(model), prompts.device, (len(prompts), len(uniform))
    tokens = torch.full(shape, eos_ids[0], device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    logprobs, entropy = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    hidden = torch.zeros((*shape, parts.width), device=device) if keep_hidden else None
    rows, going = torch.arange(len(prompts), device=device), torch.ones(len(prompts), dtype=torch.bool, device=device)
    draws, ending = uniform.to(device), torch.tensor(eos_ids, device=device)
    cache = _cache(parts.trunk.config, prompts.shape[1] + len(uniform))
    # Responses to one prompt share its pass.
    distinct, of = torch.where(prompt_mask, prompts, -1).unique(dim=0, return_inverse=True)
    shared = len(distinct) < len(prompts)
    inputs, attention = (distinct.clamp(min=0), distinct >= 0) if shared else (prompts, prompt_mask)
    # Learned positions: without explicit ids GPT-2 would count the padding on the left.
    positions, added = (attention.long().cumsum(dim=1) - 1).clamp(min=0), None
    for step, draw in enumerate(draws):
        seen = (attention if added is None else added)[..., : prompts.shape[1] + step]
        output = parts.trunk(
            input_ids=inputs, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        )
        state = output.last_hidden_state[:, -1]
        if step == 0 and shared:
            cache.reorder_cache(of)
            state, positions, attention = state[of], positions[of], attention[of]
        if step == 0:
            attention = nn.functional.pad(attention, (0, len(uniform)), value=True)
            added = _added(attention, parts.trunk, cache)
        distribution = torch.log_softmax(parts.logits(state) / temperature, dim=-1)
        probabilities = distribution.exp()
        chosen = _inverse_cdf(probabilities, draw[rows])
        # `= True` would copy it to a GPU, and wait for that.
        tokens[rows, step], mask[rows, step] = chosen, torch.ones_like(chosen, dtype=torch.bool)
        logprobs[rows, step] = distribution.gather(1, chosen[:, None]).squeeze(1)
        entropy[rows, step] = -(probabilities * distribution).sum(dim=-1)
        if keep_hidden:
            hidden[rows, step] = state.float()
        # A finished row is sampled on, into nothing, until enough have finished to shrink the batch.
        going &= ~torch.isin(chosen, ending)
        inputs, positions = chosen[:, None], positions[:, -1:] + 1
        if (step + 1) % _LOOK_EVERY[device.type]:
            continue
        if not (share := going.float().mean().item()):
            break
        if share <= _COMPACT_AT[device.type]:
            index = going.nonzero().squeeze(1)
            cache.reorder_cache(index)
            rows, inputs, positions, attention, going = (t[index] for t in (rows, inputs, positions, attention, going))
            added = None if added is None else added[index]
    return tokens, mask, logprobs, entropy, hidden


def _added(attention: Tensor, trunk: nn.Module, cache: DynamicCache) -> Tensor | None:
    """What is added to the scores of one new token's attention, [B, 1, 1, L], for the mask `attention` [B, L] of all
    that will be there; None where the architecture takes only that. transformers would make it anew for each token, and
    wait for a GPU to say whether anything is masked. Its rows begin where kernels want them, at a multiple of 8."""
    if not (getattr(trunk, "_supports_attention_backend", False) and all(type(one) is _Room for one in cache.layers)):
        return None
    added = torch.zeros(
        (len(attention), 1, 1, -(-attention.shape[1] // 8) * 8), dtype=trunk.dtype, device=attention.device
    )
    added[:, 0, 0, : attention.shape[1]].masked_fill_(~attention, -math.inf)
    return added


def _cache(config, most: int) -> DynamicCache:
    """An empty cache for at most `most` tokens; layers of a sliding window, and those that keep states, stay
    transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [_Room(most) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _Room(DynamicLayer):
    """Keys and values of one layer, with room for more: a DynamicLayer copies all of them at each token. Under autocast
    they are kept in its precision, to which attention would round them each time. On a GPU, whose freed blocks would
    not fit the longer ones, there is room for all `most` tokens from the start."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def update(self, key_states: Tensor, value_states: Tensor, *_, **__) -> tuple[Tensor, Tensor]:
        """Take up [B, H, new, D] of each; all that is kept, [B, H, length, D]."""
        states, kind, before = (key_states, value_states), key_states.device.type, self.get_seq_length()
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
            self.room = [s.new_empty((*s.shape[:2], 0, s.shape[3]), dtype=half) for s in states]
        after = before + key_states.shape[2]
        if after > self.room[0].shape[2]:
            longer = self.most if kind == "cuda" else min(after + _MORE, self.most)
            self.room = [_longer(room, before, max(after, longer)) for room in self.room]
        for room, new in zip(self.room, states, strict=True):
            room[:, :, before:after] = new
        self.keys, self.values = (room[:, :, :after] for room in self.room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, in this order; there may be more or fewer of them."""
        if length := self.get_seq_length():
            self.room = [_longer(room[beam_idx, :, :length], length, room.shape[2]) for room in self.room]
            self.keys, self.values = (room[:, :, :length] for room in self.room)


def _longer(kept: Tensor, length: int, positions: int) -> Tensor:
    """Room for `positions` tokens, with the first `length` of `kept` [B, H, at least length, D] in it."""
    room = kept.new_empty((*kept.shape[:2], positions, kept.shape[3]))
    room[:, :, :length] = kept[:, :, :length]
    return room


def _inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes `uniform` [B, 1]; [B]."""
    cumulative = probabilities.cumsum(dim=-1)
    # Rounding leaves the last sum a little off 1; scaling the draw keeps it inside.
    chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)
    return chosen.clamp(max=probabilities.shape[-1] - 1)


def answer_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: GenerationSettings,
    device: Device,
    seed: int,
    template: Template = TEMPLATE,
) -> list[Answer]:
    """One sampled response of a causal LM for each formatted prompt, in the order given, batched by length. The same
    seed, prompts and settings give every model the same random numbers."""
    encoded = start_tokens(tokenizer, prompts)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    answers, generator = {}, torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    only_tokens_of(tokenizer, model)
    how = (settings.max_new_tokens, settings.temperature, generator, template)
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        with fastest(device, model).autocast():
            found, _ = sample_answers(model, tokenizer, [encoded[i] for i in batch], *how)
        answers |= dict(zip(batch, found, strict=True))
        give_back_memory()
    model.train(was_training)
    return [answers[i] for i in range(len(encoded))]


def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    template: Template = TEMPLATE,
    **more,
) -> tuple[list[Answer], Sampled]:
    """One response to each of `prompts` (lists of token ids), read as one of `template`, and what the sampler knows of
    every token; `generator` and `more` go to `sample`."""
    tokens, mask = left_padded(prompts, tokenizer.pad_token_id, next(model.parameters()).device)
    ends = end_ids(tokenizer, model)
    sampled = sample(model, tokens, mask, max_new_tokens, temperature, ends, generator, **more)
    kept = [row[real].tolist() for row, real in zip(sampled.tokens.cpu(), sampled.mask.cpu(), strict=True)]
    texts = map(template.response, continuations(tokenizer, prompts, kept))
    return [Answer(*answer) for answer in zip(texts, kept, sampled.ended.tolist(), strict=True)], sampled
