"""Reward functions: `(prompts, responses) -> FloatTensor[n]`, both lists of plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_utils.errors import InputError
from rlhf_utils.files import read_json, write_json
from rlhf_utils.models import load_reward_model, load_tokenizer
from rlhf_utils.runtime import Device
from rlhf_utils.template import TEMPLATE

RewardFunction = Callable[[Sequence[str], Sequence[str]], Tensor]
SCALE_FILE = "reward_scale.json"


def right_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token lists as one right-padded tensor [B, T] and the lengths [B]."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return tokens, lengths


@torch.no_grad()
def score_tokens(model: PreTrainedModel, rows: Sequence[Sequence[int]], device: Device, batch_size: int = 64) -> Tensor:
    """The reward model's logit for each token list [n], read at the list's last token.

    Every score in this project comes from here. Sequences are right-padded, so a causal trunk never sees padding, and
    the position is known by length, never by token id (GPT-2's pad is its EOS): the score of a text does not depend
    on the
    batch it stands in. Sequences longer than the model's context raise InputError.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, rows))
    if limit and longest > limit:
        raise InputError(f"a text of {longest} tokens is longer than the reward model's {limit}; shorten it")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    scores = torch.empty(len(rows))
    was_training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        tokens, lengths = right_padded([rows[i] for i in batch], model.config.pad_token_id)
        with torch.autocast(device.kind, dtype=device.autocast_dtype, enabled=device.autocast_dtype is not None):
            states = model.base_model(input_ids=tokens.to(device.kind)).last_hidden_state
        last = states[torch.arange(len(batch)), lengths - 1]
        scores[batch] = model.score(last.float()).squeeze(-1).float().cpu()
    model.train(was_training)
    return scores


class RewardModel:
    """A trained reward model as a reward function, in units of the SFT model's own spread.

    `scores = (logit - mean) / std`, mean and std taken over answers of the SFT model, so that 0 is an average SFT
    answer and 1 is
    one standard deviation better. A reward model's logit has no unit of its own: only differences were trained.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        mean: float = 0.0,
        std: float = 1.0,
    ):
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.mean, self.std = mean, std

    @classmethod
    def load(cls, folder: str | Path, device: Device) -> RewardModel:
        """The reward model in `folder`, with the scale written beside it where there is one."""
        model, tokenizer = load_reward_model(folder, device), load_tokenizer(folder)
        scale_file = Path(folder) / SCALE_FILE
        scale = read_json(scale_file) if scale_file.is_file() else {"mean": 0.0, "std": 1.0}
        return cls(model, tokenizer, device, scale["mean"], scale["std"])

    def calibrate(self, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Set mean and standard deviation so that these answers score 0 on average with spread 1."""
        logits = self.logits(prompts, responses)
        self.mean, self.std = logits.mean().item(), logits.std().item()
        if not self.std > 0:
            raise InputError(
                "the reward model gives every SFT answer the same score, so it cannot rank; train it on more pairs"
            )

    def save_scale(self, folder: Path) -> None:
        """Write mean and standard deviation beside the model."""
        write_json(folder / SCALE_FILE, {"mean": self.mean, "std": self.std})

    def logits(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """The model's own logits [n], before scaling."""
        texts = [TEMPLATE.text(p, r) for p, r in zip(prompts, responses, strict=True)]
        return score_tokens(self.model, self.tokenizer(texts, add_special_tokens=False)["input_ids"], self.device)

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return (self.logits(prompts, responses) - self.mean) / self.std
