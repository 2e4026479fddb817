"""The small GPT-2 made here: a byte-level BPE tokenizer and a language model, trained from scratch on plain text."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import disk_errors, whole_folder
from rlhf_utils.platforms.runtime import cache_entry
from rlhf_utils.runs.training import checkpointing, train_resumably
from rlhf_utils.settings.sections import BaseSettings

END_OF_TEXT = "<|endoftext|>"
# Part of the cache key: raise it when the same settings and text would give another model.
FORMAT_VERSION = 1
# Fewer blocks than this would be learned by heart within a few steps.
MIN_BLOCKS = 8

Progress = Callable[[str, int, int], None]


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's, with at most `vocabulary` tokens; any text survives encode and decode.

    EOS, BOS and padding are the one token `<|endoftext|>`, as in GPT-2. Raises InputError where `texts` hold no text.
    """
    if not any(text.strip() for text in texts):
        raise InputError("there is no text to train a tokenizer on; give documents that are not empty")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, clean_up_tokenization_spaces=False, **special
    )


def train_base(
    texts: Sequence[str], settings: BaseSettings, seed: int, folder: Path, progress: Progress | None = None
) -> None:
    """Train a tokenizer and a GPT-2 on `texts` and save both in `folder`, which is there whole or not at all.

    The documents are joined by the end-of-text token and cut into blocks of `settings.block_tokens`. An interrupted
    training resumes from its last whole checkpoint, kept beside `folder`, when it is called again with the same
    arguments. `progress(text, step, steps)` is called about a hundred times. Raises InputError for too little text,
    TrainingError where the loss or a gradient is not finite.
    """
    work = folder.with_name(f".{folder.name}.work")
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, settings.vocabulary, settings.context)
    blocks = _pack(texts, tokenizer, settings)
    set_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        # The same function as GPT-2's gelu_new, in one fused kernel.
        activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        attn_implementation="sdpa",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    model = GPT2LMHeadModel(config)
    # Named here because transformers cannot guess it from GPT-2's class name and would warn about that.
    model.loss_type = "ForCausalLM"
    arguments = TrainingArguments(
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(50, settings.steps // 10),
        weight_decay=0.01,
        optim="adamw_torch_fused",
        **checkpointing(work, seed, max(1, settings.steps // 100), math.ceil(settings.steps / 3)),
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": b, "labels": b} for b in blocks])
    train_resumably(trainer, work, "training the base model", progress)
    # Only now: with it transformers takes the end-of-text tokens between documents for padding, and warns.
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    shutil.rmtree(work)


def cached_base(texts: Sequence[str], settings: BaseSettings, seed: int, progress: Progress | None = None) -> Path:
    """The folder of the base model for these arguments in `runtime.cache_folder()`, trained now unless this machine has
    it already. A second process that wants the same model waits for the first."""
    key = hashlib.sha256(json.dumps([FORMAT_VERSION, settings.model_dump(), seed, *texts]).encode()).hexdigest()
    with cache_entry(f"base/{key[:16]}") as folder:
        if not (folder / "model.safetensors").is_file():
            train_base(texts, settings, seed, folder, progress)
    return folder


def _pack(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, settings: BaseSettings):
    """The token ids of all documents, each ended by EOS, as int64[blocks, block_tokens]; the rest is dropped."""
    if settings.block_tokens > settings.context:
        raise InputError(
            f"base.block_tokens is {settings.block_tokens}, more than base.context {settings.context}; lower it"
        )
    rows = tokenizer(list(texts), verbose=False)["input_ids"]
    ids = [token for row in rows for token in (*row, tokenizer.eos_token_id)]
    blocks = len(ids) // settings.block_tokens
    if blocks < MIN_BLOCKS:
        raise InputError(
            f"too little text to train a base model: {len(texts):,} documents give {len(ids):,} tokens, at least "
            f"{MIN_BLOCKS * settings.block_tokens:,} are needed; give more text or choose a ready model as policy"
        )
    return torch.tensor(ids[: blocks * settings.block_tokens]).view(blocks, settings.block_tokens)
