"""Reward functions: `(prompts, responses) -> FloatTensor[n]`, both lists of plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_utils.errors import InputError
from rlhf_utils.files import read_json, write_json
from rlhf_utils.metrics.words import words_of
from rlhf_utils.models import load_classifier, load_classifier_tokenizer, load_reward_model, load_tokenizer
from rlhf_utils.runtime import Device
from rlhf_utils.template import TEMPLATE, Template

RewardFunction = Callable[[Sequence[str], Sequence[str]], Tensor]
# Beside a saved reward model: the scale of its rewards, or the label of a classifier that is paid for.
SCALE_FILE = "reward_scale.json"
LABEL_FILE = "reward_label.json"
_IGNORED = -100


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


class ClassifierReward:
    """The logit of one label of a text classifier, read from prompt and response as one text.

    model, tokenizer: any `AutoModelForSequenceClassification` and its own tokenizer
    label: a name in the model's `id2label`, such as POSITIVE
    joint: what stands between prompt and response: nothing, where the response is a continuation as it was sampled

    The logit and not the probability: it keeps rising where the probability is already 1. Raises InputError for a label
    that the classifier does not have, and for a text longer than it reads.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: str,
        device: Device,
        joint: str = " ",
    ):
        labels = {name: index for index, name in model.config.id2label.items()}
        if label not in labels:
            raise InputError(f"the classifier has no label {label!r}; choose one of {', '.join(map(str, labels))}")
        self.model, self.tokenizer, self.label, self.device = model.eval(), tokenizer, int(labels[label]), device
        self.joint = joint

    @classmethod
    def load(cls, folder: str | Path, device: Device) -> ClassifierReward:
        """The classifier in `folder`, for the label written beside it."""
        about = read_json(Path(folder) / LABEL_FILE)
        model, tokenizer = load_classifier(folder, device), load_classifier_tokenizer(folder)
        return cls(model, tokenizer, about["label"], device, about["joint"])

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return self._read(prompts, responses)[:, self.label]

    def probabilities(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Probability of the label [n]."""
        return self._read(prompts, responses).softmax(dim=1)[:, self.label]

    def _read(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        texts = [f"{p}{self.joint}{r}" for p, r in zip(prompts, responses, strict=True)]
        rows = self.tokenizer(texts)["input_ids"]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and (longest := max(map(len, rows))) > limit:
            raise InputError(f"a text of {longest} tokens is longer than the classifier's {limit}; shorten it")
        return class_logits(self.model, self.tokenizer, rows, self.device)


@torch.no_grad()
def class_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], device: Device
) -> Tensor:
    """A classifier's logits [n, labels] for token lists; what stands in the same batch makes no difference."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    logits = torch.empty(len(rows), model.config.num_labels)
    was_training = model.training
    model.eval()
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        padded = tokenizer.pad({"input_ids": [rows[i] for i in batch]}, return_tensors="pt", padding_side="right")
        with torch.autocast(device.kind, dtype=device.autocast_dtype, enabled=device.autocast_dtype is not None):
            logits[batch] = model(**padded.to(device.kind)).logits.float().cpu()
    model.train(was_training)
    return logits


def load_reward(folder: str | Path, device: Device) -> RewardModel | ClassifierReward:
    """The reward that a run's `reward_model` stage left in `folder`."""
    kind = ClassifierReward if (Path(folder) / LABEL_FILE).is_file() else RewardModel
    return kind.load(folder, device)


class FluencyReward:
    """Mean log-likelihood of the response under a language model, in nats per token; 0 would be certainty.

    A response without a token has no likelihood and gets that of the most surprising token, the log of 1 / vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: Device,
        template: Template = TEMPLATE,
    ):
        self.model, self.tokenizer, self.device, self.template = model.eval(), tokenizer, device, template

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        encode, template = self.tokenizer, self.template
        starts = encode([template.format(p) for p in prompts], add_special_tokens=False)["input_ids"]
        ends = encode([template.completion(r) for r in responses], add_special_tokens=False)["input_ids"]
        scores = torch.full((len(starts),), -math.log(self.model.config.vocab_size))
        spoken = [i for i, response in enumerate(responses) if response.strip()]
        spoken.sort(key=lambda i: len(starts[i]) + len(ends[i]))
        for first in range(0, len(spoken), 16):
            batch = spoken[first : first + 16]
            tokens, lengths = right_padded([starts[i] + ends[i] for i in batch], self.model.config.eos_token_id)
            targets = tokens[:, 1:].clone()
            for row, i in enumerate(batch):
                targets[row, : len(starts[i]) - 1] = _IGNORED
                targets[row, lengths[row] - 1 :] = _IGNORED
            logits = self.model(tokens.to(self.device.kind)).logits[:, :-1].float().cpu().transpose(1, 2)
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=_IGNORED)
            scores[batch] = -losses.sum(dim=1) / (targets != _IGNORED).sum(dim=1)
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
        if not parts:
            raise InputError("a reward mixture needs at least one part: name=(weight, reward_function)")
        self.parts = parts

    def terms(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Tensor]:
        """Each part's own rewards [n], by name."""
        return {
            name: torch.as_tensor(reward(prompts, responses), dtype=torch.float32)
            for name, (_, reward) in self.parts.items()
        }

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum [n] of what `terms` returned."""
        return sum(weight * terms[name] for name, (weight, _) in self.parts.items())

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return self.total(self.terms(prompts, responses))
