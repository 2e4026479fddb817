"""What both programs are given: a random GPT-2 124M, prompts, a small reward model, and how much to do."""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VOCABULARY = 50_257
EOS, PAD = VOCABULARY - 1, VOCABULARY - 2
# The template adds "Human:" and "Assistant:", one token each in this tokenizer.
TEMPLATE_TOKENS = 2
# 20-quantiles of the prompt lengths (words and punctuation marks) of Anthropic's hh-rlhf, helpful-base test, 2026.
HELPFUL_QUANTILES = (3, 9, 11, 13, 15, 21, 34, 49, 65, 81, 96, 110, 128, 146, 168, 190, 217, 253, 293, 363)
LONGEST_PROMPT = 256
MEAN_RAGGED_ANSWER = 40


@dataclass(frozen=True)
class Workload:
    """`episodes` per update, learnt from in `epochs` passes of one minibatch each, in microbatches of `micro`."""

    name: str
    episodes: int
    micro: int
    response_tokens: int
    epochs: int = 4


def workload(name: str, episodes: int) -> Workload:
    """`fixed` or `ragged` with so many episodes."""
    if name == "fixed":
        return Workload("fixed", episodes, min(16, episodes), 48)
    return Workload("ragged", episodes, math.gcd(4, episodes), 128)


def reached(rewards: Sequence[float], goal: float) -> int | None:
    """The first update at which the mean reward of the last three updates is at least `goal`; None if none is."""
    for last in range(2, len(rewards)):
        if statistics.fmean(rewards[last - 2 : last + 1]) >= goal:
            return last
    return None


def arguments() -> argparse.Namespace:
    """What `run_ours.py` and `run_trl.py` are told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workload", required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--updates", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def prepare(folder: Path, helpful: Path | None, seed: int = 0, size: dict | None = None) -> None:
    """Write tokenizer, policies, reward model and prompts; `size` overrides fields of GPT2Config."""
    tokenizer = _tokenizer()
    for name in ("fixed", "ragged"):
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD, **(size or {}))
        model = GPT2LMHeadModel(config)
        # On "fixed" no answer ends; on "ragged" each token ends it with a probability of 1 in 40.
        _set_eos_probability(model, 1e-12 if name == "fixed" else 1 / MEAN_RAGGED_ANSWER)
        model.save_pretrained(folder / f"policy_{name}")
        tokenizer.save_pretrained(folder / f"policy_{name}")
    torch.manual_seed(seed + 1)
    small = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, num_labels=1, pad_token_id=PAD, eos_token_id=EOS,
        bos_token_id=EOS,
    )  # fmt: skip
    GPT2ForSequenceClassification(small).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    lengths = {"fixed": [32] * 256, "ragged": _ragged_lengths(helpful, seed)}
    prompts = {name: [_words(n - TEMPLATE_TOKENS, seed + i) for i, n in enumerate(ns)] for name, ns in lengths.items()}
    (folder / "prompts.json").write_text(json.dumps(prompts))


def matmul_rate(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 7) -> float:
    """Best rate of `size`^3 matrix products, in FLOP/s."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def _tokenizer() -> PreTrainedTokenizerFast:
    """One word, one token, so that lengths are what the workload says."""
    words = {f"w{i}": i for i in range(PAD)} | {"<pad>": PAD, "<eos>": EOS}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="w0", padding_side="left"
    )


def _set_eos_probability(model: GPT2LMHeadModel, probability: float) -> None:
    """Shift the EOS logit in every state: the head is the embedding, so a bias along EOS's own embedding does it."""
    end = model.transformer.wte.weight.data[EOS]
    nats = math.log(probability * VOCABULARY)
    model.transformer.ln_f.bias.data += nats * end / end.square().sum()


def _ragged_lengths(helpful: Path | None, seed: int, count: int = 256) -> list[int]:
    source = random.Random(seed)
    if helpful and helpful.exists():
        import gzip
        import re

        with gzip.open(helpful, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["chosen"].rpartition("\n\nAssistant:")[0] for line in file]
        found = [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    else:
        found = list(HELPFUL_QUANTILES)
    return [min(LONGEST_PROMPT, max(TEMPLATE_TOKENS + 1, source.choice(found))) for _ in range(count)]


def _words(count: int, seed: int) -> str:
    source = random.Random(seed)
    return " ".join(f"w{source.randrange(1, PAD)}" for _ in range(count))
