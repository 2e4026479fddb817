"""Sequence classifiers as rewards: the trained reward model, and one label of a text classifier."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_utils.data.tokens import cut_tokens, read_tokens
from rlhf_utils.models import loading
from rlhf_utils.models.language_model import right_padded
from rlhf_utils.models.loading import load_classifier_tokenizer
from rlhf_utils.models.precision import fastest
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.platforms.names import Source, model_folder
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.settings.template import TEMPLATE

# Beside a saved reward model: the scale of its rewards, or the label of a classifier that is paid for.
SCALE_FILE = "reward_scale.json"
LABEL_FILE = "reward_label.json"


@torch.no_grad()
def class_logits(model: PreTrainedModel, rows: Sequence[Sequence[int]], device: Device, batch_size: int = 64) -> Tensor:
    """A sequence classifier's logits [n, labels] for token lists of at most `positions(model)` tokens.

    Every score in this project comes from here. Rows are right-padded and their length is known, so a row's logits
    depend neither on the batch it stands in nor on which token id is the padding. Of a causal model (GPT-2, Llama) the
    `score` head reads, in fp32, the state of a row's last token; an encoder (BERT) runs its own forward, all in fp32.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    logits = torch.empty(len(rows), model.config.num_labels)

    def score(size: int) -> None:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            tokens, lengths = right_padded([rows[i] for i in batch], model.config.pad_token_id)
            mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long().to(device.kind)
            tokens, causal = tokens.to(device.kind), hasattr(model, "score")
            if causal:
                with fastest(device, model).autocast():
                    states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
                states = states[torch.arange(len(batch)), lengths - 1]
            with torch.autocast(device.kind, enabled=False):
                found = model.score(states.float()) if causal else model(input_ids=tokens, attention_mask=mask).logits
            logits[batch] = found.cpu()

    was_training = model.training
    model.eval()
    fitting("scoring", batch_size, score)
    model.train(was_training)
    return logits


def positions(model: PreTrainedModel) -> int | None:
    """Tokens that `model` reads at most; None where nothing limits it."""
    limit = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from their padding id on.
    first = getattr(getattr(model.base_model, "embeddings", None), "padding_idx", None)
    return limit - first - 1 if limit and first is not None else limit


class RewardModel:
    """A trained reward model as a reward function, in units of the SFT model's own spread.

    `scores = (logit - mean) / std`, mean and std taken over responses of the SFT model: 0 is an average SFT response
    and 1 is one standard deviation better. A logit has no unit of its own: only differences were trained. `cut` counts
    the texts that were longer than the model reads: these lose the beginning of their prompt.
    """

    label = 0  # the column of the logits that is the reward
    after: Sequence[int] = ()  # token ids that follow each text

    def __init__(self, model, tokenizer, device: Device, mean: float = 0.0, std: float = 1.0):
        self.model, self.tokenizer, self.device, self.mean, self.std = model.eval(), tokenizer, device, mean, std
        self.cut = 0

    def calibrate(self, prompts: Sequence[str], responses: Sequence[str]) -> None:
        """Set mean and standard deviation so that these responses score 0 on average with spread 1."""
        logits = self.logits(prompts, responses)
        self.mean, self.std = logits.mean().item(), logits.std().item()
        if not self.std > 0:
            raise InputError("the reward model gives every SFT answer the same score; train it on more pairs")

    def save_scale(self, folder: Path) -> None:
        """Write mean and standard deviation beside the model."""
        write_json(folder / SCALE_FILE, {"mean": self.mean, "std": self.std})

    def logits(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """The model's own logits [n], before scaling."""
        return self._read(prompts, responses)[:, self.label]

    def margins(self, pairs: Dataset) -> Tensor:
        """Logit of the chosen minus logit of the rejected response [n]."""
        prompts = list(pairs["prompt"])
        return self.logits(prompts, pairs["chosen"]) - self.logits(prompts, pairs["rejected"])

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return (self.logits(prompts, responses) - self.mean) / self.std

    def _texts(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[str], list[str]]:
        """What the model reads: the beginning of each text, and the end that continues it."""
        return [TEMPLATE.format(p) for p in prompts], [TEMPLATE.completion(r) for r in responses]

    def _read(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Logits [n, labels]."""
        rows, most = read_tokens(self.tokenizer, *self._texts(prompts, responses)), positions(self.model)
        rows = [[*row, *self.after] for row in rows]
        if most and (long := sum(len(row) > most for row in rows)):
            if not self.cut:
                told = f"{long} of {len(rows)} texts are longer than the {most} tokens that the reward model reads"
                print(f"{told}; they and later ones are cut from the left of the prompt", file=sys.stderr)
            self.cut += long
            rows = cut_tokens(self.tokenizer, rows, most)
        return class_logits(self.model, rows, self.device)


class ClassifierReward(RewardModel):
    """The logit of one label of a text classifier, read from prompt and response as one text; `joint` stands between
    them: nothing, where the response is a continuation as it was sampled; `ending` follows them. It keeps rising where
    the probability is already 1. Raises InputError for a label that is not in the model's `id2label`."""

    def __init__(self, model, tokenizer, device: Device, label: str, joint: str = " ", ending: str | None = None):
        labels = {name: index for index, name in model.config.id2label.items()}
        if label not in labels:
            raise InputError(f"the classifier has no label {label!r}; choose one of {', '.join(map(str, labels))}")
        super().__init__(model, tokenizer, device)
        self.label, self.joint = int(labels[label]), joint
        self.after = tokenizer(ending, add_special_tokens=False)["input_ids"] if ending else []

    def probabilities(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Probability of the label [n]."""
        return self._read(prompts, responses).softmax(dim=1)[:, self.label]

    def _texts(self, prompts: Sequence[str], responses: Sequence[str]) -> tuple[list[str], list[str]]:
        return list(prompts), [self.joint + response for response in responses]


def load_reward(source: Source, device: Device) -> RewardModel | ClassifierReward:
    """The reward in a folder or on the hub, as a run's `reward_model` stage leaves it: a classifier where a label is
    written beside it, else a reward model, with its scale where there is one."""
    folder = model_folder(source)
    label, scale = (read_json(path) if (path := folder / name).is_file() else {} for name in (LABEL_FILE, SCALE_FILE))
    model = (loading.load_classifier if label else loading.load_reward_model)(folder, device)
    how = (model, load_classifier_tokenizer(folder), device)
    return ClassifierReward(*how, **label) if label else RewardModel(*how, **scale)


def check_critic(source: Source, tokenizer: PreTrainedTokenizerBase, base: str | None = None) -> None:
    """Raise InputError where the reward model at `source` cannot become the critic of a policy with `tokenizer`."""
    if loading.reads_ahead(loading.load_config(source, base)):
        trouble = "reads a text as a whole, and not token by token"
    elif load_classifier_tokenizer(source, base).get_vocab() != tokenizer.get_vocab():
        trouble = "has another vocabulary than the policy"
    else:
        return
    raise InputError(f"ppo.critic separate: the reward model {source} {trouble}; set ppo.critic=shared")
