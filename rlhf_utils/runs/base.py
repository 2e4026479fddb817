"""Stages in which the reader trains nothing: the small GPT-2 made here, the data, and models that are ready."""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from rlhf_utils.data.prepared import PreparedData, check_rows, prepare, pretraining_texts
from rlhf_utils.data.sources import load_rows
from rlhf_utils.data.tokens import beginnings
from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import copy_model, load_config, load_policy, load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import whole_folder, write_jsonl
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.platforms.runtime import cache_entry, detect_device
from rlhf_utils.rewards.reward_model import RewardModel
from rlhf_utils.rewards.terms import FluencyReward
from rlhf_utils.runs.run import LOG, Run
from rlhf_utils.runs.training import Progress, checkpointing, train_resumably
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import BaseSettings

END_OF_TEXT = "<|endoftext|>"
# Part of the cache key: raise it when the same settings and text would give another model.
FORMAT_VERSION = 1
# Fewer blocks than this would be learned by heart within a few steps.
MIN_BLOCKS = 8
_SCALE_PROMPTS, _SCALE_LEAST = 200, 16


def make_base(run: Run) -> dict:
    """`checkpoints/base`: the ready policy that the recipe names, or a small GPT-2 trained here on the data's own text,
    which holds no prompt or response that a later stage is evaluated on. Returns its results."""
    recipe = run.recipe
    if run.has("base"):
        return run.results("base")
    with run.training("base"):
        if recipe.policy != EMBEDDED:
            run.publish("base", *_ready_policy(run, recipe.policy), policy=recipe.policy)
            return run.results("base")
        if recipe.dataset != EMBEDDED:
            check_rows(load_rows(recipe.dataset, recipe.data, recipe.seed), recipe, run.splits)
        run.progress("training the small base model (once per machine)")
        texts = pretraining_texts(recipe.dataset, recipe.data, recipe.base.documents, recipe.seed)
        source = cached_base(texts, recipe.base, recipe.seed, run.progress)
        run.publish("base", fill=partial(copy_model, source), documents=len(texts), policy=recipe.policy)
    return run.results("base")


def make_data(run: Run) -> PreparedData:
    """`checkpoints/data`: the recipe's rows, filtered and divided; token counts are of the base model's tokenizer."""
    if not run.has("data"):
        with run.training("data"):
            run.progress("reading and filtering the data")
            recipe = run.recipe
            rows = load_rows(recipe.dataset, recipe.data, recipe.seed)
            check_rows(rows, recipe)
            data = prepare(rows, recipe.data, load_tokenizer(run.tokenizer_folder), recipe.seed, recipe.template)
            if empty := [name for name in run.splits if not len(data.splits[name])]:
                raise InputError(
                    f"{rows.name}: no row is left for {' and '.join(empty)}, and the series needs every split; give "
                    f"data.shares.{empty[0]} a share above 0"
                )
            counts = {name: len(split) for name, split in data.splits.items()}
            run.publish("data", fill=data.save, kind=data.kind, rows=counts)
    return PreparedData.load(run.folder("data"))


def fetch_policy(run: Run, stage: str) -> None:
    """A policy stage in which nothing is trained: the ready policy that the recipe names, or the base model as it is
    where it writes such texts already; its loss on held-out texts is the evidence."""
    source, known = run.ready_model(stage), run.tokenizer_folder
    if run.has(stage):
        return
    with run.training(stage):
        if source:
            model, tokenizer = _ready_policy(run, source)
            if known.is_dir() and load_tokenizer(known).get_vocab() != tokenizer.get_vocab():
                raise InputError(
                    f"models.{stage} {source} has another vocabulary than {known}; all policies of a run share one"
                )
            run.publish(stage, model, tokenizer, method="ready", source=source)
            return
        base, held_out = run.folder("base"), PreparedData.load(run.folder("data")).splits["development"]
        model, tokenizer = load_policy(base, detect_device()), load_tokenizer(base)
        texts, prompts = list(held_out["text"]), list(held_out["prompt"])
        texts = beginnings(texts, tokenizer, run.recipe.data.max_response_tokens)
        rests = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
        likelihood = FluencyReward(model, tokenizer, detect_device(), run.recipe.template)(prompts, rests)
        write_jsonl(run.work(stage) / LOG, [])
        results = {"held_out_loss": -likelihood.mean().item(), "held_out_texts": len(texts)}
        run.publish(stage, fill=partial(copy_model, base), method="already tuned", **results)


def calibrate_on_sft(run: Run, reward: RewardModel) -> None:
    """Put `reward` on the scale of the SFT model's responses to development prompts: mean 0, standard deviation 1."""
    prompts = list(PreparedData.load(run.folder("data")).splits["development"]["prompt"])[:_SCALE_PROMPTS]
    # The spread of very few responses says little, that of one nothing: few prompts are answered several times.
    prompts *= -(-_SCALE_LEAST // len(prompts))
    recipe, tokenizer = run.recipe, load_tokenizer(run.folder("sft"))
    sft = load_policy(run.folder("sft"), reward.device).eval()
    texts = [recipe.template.format(prompt) for prompt in prompts]
    answers = answer_prompts(sft, tokenizer, texts, recipe.generation, reward.device, recipe.seed)
    reward.calibrate(prompts, [answer.text for answer in answers])


def check_context(recipe: Recipe, policy: str | Path) -> None:
    """Raise InputError where prompt and response can grow beyond what the model at `policy` has positions for."""
    context = getattr(load_config(policy, recipe.models.adapter_base), "max_position_embeddings", None)
    if context and recipe.longest_text > context:
        raise InputError(
            f"data.max_prompt_tokens plus the longest answer need {recipe.longest_text} positions but the context of "
            f"{policy} is {context}; lower the token limits"
        )


def _ready_policy(run: Run, source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    base = run.recipe.models.adapter_base
    check_context(run.recipe, source)
    run.progress(f"loading {source}")
    # Loaded and saved, not copied: a folder may hold weights in several formats, or under names that are none.
    return load_policy(source, detect_device(), dropout=True, base=base), load_tokenizer(source, base)


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like GPT-2's, with at most `vocabulary` tokens; any text survives encode and decode.

    EOS, BOS and padding are the one token `<|endoftext|>`, as in GPT-2.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = {"special_tokens": [END_OF_TEXT], "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, **how))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, clean_up_tokenization_spaces=False, **special
    )


def train_base(
    texts: Sequence[str], settings: BaseSettings, seed: int, folder: Path, progress: Progress | None = None
) -> None:
    """Train a tokenizer and a GPT-2 on `texts` and save both in `folder`, which is there whole or not at all.

    The documents are joined by the end-of-text token and cut into blocks of `settings.block_tokens`; the rest is
    dropped. An interrupted training resumes from its last whole checkpoint, kept beside `folder`, when it is called
    again with the same arguments. `progress(text, step, steps)` is called about a hundred times. Raises InputError for
    too little text, TrainingError where the loss or a gradient is not finite.
    """
    work, size = folder.with_name(f".{folder.name}.work"), min(settings.block_tokens, settings.context)
    tokenizer = train_tokenizer(texts, settings.vocabulary, settings.context)
    rows = tokenizer(list(texts), verbose=False)["input_ids"]
    ids = [token for row in rows for token in (*row, tokenizer.eos_token_id)]
    blocks = torch.tensor(ids[: len(ids) // size * size]).view(-1, size)
    if len(blocks) < MIN_BLOCKS:
        raise InputError(
            f"too little text to train a base model: {len(texts):,} documents give {len(ids):,} tokens, at least "
            f"{MIN_BLOCKS * size:,} are needed; give more text or choose a ready model as policy"
        )
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
