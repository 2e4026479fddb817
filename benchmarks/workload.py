"""What both programs are given: a random GPT-2 124M, prompts, a small reward model, and how much to do."""

import gzip
import json
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
MEAN_RAGGED_RESPONSE = 40
EPOCHS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def settings(name: str, episodes: int, updates: int, precision: str) -> dict[str, Any]:
    """PPOConfig of workload `fixed` or `ragged`: so many episodes per update, learned from in one minibatch."""
    micro, response = (min(16, episodes), 48) if name == "fixed" else (math.gcd(4, episodes), 128)
    return dict(
        updates=updates, rollout_batch_size=episodes, minibatch_size=episodes, microbatch_size=micro, epochs=EPOCHS,
        max_new_tokens=response, learning_rate=1e-6, precision=precision, save_every=10**6,
    )  # fmt: skip


def reached(rewards: Sequence[float], goal: float) -> int | None:
    """The first update at which the mean reward of the last three updates is at least `goal`; None if none is."""
    for last in range(2, len(rewards)):
        if statistics.fmean(rewards[last - 2 : last + 1]) >= goal:
            return last
    return None


def prepare(folder: Path, helpful: Path | None, seed: int = 0, size: dict | None = None) -> None:
    """Write tokenizer, policies, reward model and prompts; `size` overrides fields of GPT2Config."""
    ids = dict(vocab_size=VOCABULARY, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD)
    for name, end in (("fixed", 1e-12), ("ragged", 1 / MEAN_RAGGED_RESPONSE)):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**ids, **(size or {})))
        # The probability of EOS, in every state: the head is the embedding, so a bias along EOS's own does it.
        row = model.transformer.wte.weight.data[EOS]
        model.transformer.ln_f.bias.data += math.log(end * VOCABULARY) * row / row.square().sum()
        save(model, folder / f"policy_{name}")
    torch.manual_seed(seed + 1)
    small = GPT2Config(**ids, n_embd=32, n_layer=1, n_head=2, num_labels=1)
    save(GPT2ForSequenceClassification(small), folder / "reward")
    lengths = {"fixed": [32] * 256, "ragged": _ragged_lengths(helpful, seed)}
    prompts = {name: [words(n - TEMPLATE_TOKENS, seed + i) for i, n in enumerate(ns)] for name, ns in lengths.items()}
    (folder / "prompts.json").write_text(json.dumps(prompts))


def save(model: torch.nn.Module, folder: Path) -> None:
    """Write the model with a tokenizer of one token per word, so that lengths are what the workload says."""
    vocabulary = {f"w{i}": i for i in range(PAD)} | {"<pad>": PAD, "<eos>": EOS}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = dict(pad_token="<pad>", eos_token="<eos>", unk_token="w0", padding_side="left")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=inner, **marks).save_pretrained(folder)


def words(count: int, seed: int, most: int = PAD) -> str:
    """So many random words of the tokenizer."""
    source = random.Random(seed)
    return " ".join(f"w{source.randrange(1, most)}" for _ in range(count))


def matmul_rate(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 7) -> float:
    """Best rate of `size`^3 matrix products, in FLOP/s."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])


def _ragged_lengths(helpful: Path | None, seed: int, count: int = 256) -> list[int]:
    source, found = random.Random(seed), list(HELPFUL_QUANTILES)
    if helpful and helpful.exists():
        with gzip.open(helpful, "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["chosen"].rpartition("\n\nAssistant:")[0] for line in file]
        found = [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    return [min(LONGEST_PROMPT, max(TEMPLATE_TOKENS + 1, source.choice(found))) for _ in range(count)]
