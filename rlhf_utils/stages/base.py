"""Stages `base` and `data`: the model everything starts from, and the rows divided among the stages."""

from __future__ import annotations

from pathlib import Path

from rlhf_utils.data import PreparedData, check_pairs, load_rows, prepare, pretraining_texts
from rlhf_utils.errors import InputError
from rlhf_utils.models import copy_model, load_config, load_policy, load_tokenizer, save_model
from rlhf_utils.pretraining import cached_base
from rlhf_utils.recipes import Recipe
from rlhf_utils.runs import Run
from rlhf_utils.runtime import detect_device
from rlhf_utils.settings import EMBEDDED


def make_base(run: Run) -> dict:
    """Put the base model into `checkpoints/base`: a ready one, or a small GPT-2 trained here on the data's own text.

    The text never contains a prompt or answer that a later stage is evaluated on.
    """
    if run.skips("base"):
        return run.results("base")
    recipe = run.recipe
    with run.stage("base") as stage, stage.publish() as folder:
        if recipe.policy == EMBEDDED:
            run.progress("training the small base model (once per machine)")
            texts = pretraining_texts(recipe.dataset, recipe.data, recipe.base.documents, recipe.seed)
            source = cached_base(
                texts,
                recipe.base,
                recipe.seed,
                lambda step, total, loss: run.progress(f"training the base model: loss {loss:.2f}", step, total),
            )
            copy_model(source, folder)
            stage.results = {"documents": len(texts)}
        elif (path := Path(recipe.policy).expanduser()).is_dir():
            load_tokenizer(path)
            check_context(recipe, path)
            copy_model(path, folder)
        else:
            check_context(recipe, recipe.policy)
            run.progress(f"downloading {recipe.policy}")
            save_model(load_policy(recipe.policy, detect_device(), dropout=True), load_tokenizer(recipe.policy), folder)
        stage.results["policy"] = recipe.policy
    return run.results("base")


def check_context(recipe: Recipe, policy: str | Path) -> None:
    """Raise InputError where prompt and answer can grow beyond what the model at `policy` has positions for."""
    context = getattr(load_config(policy), "max_position_embeddings", None)
    if context and recipe.longest_text > context:
        raise InputError(
            f"data.max_prompt_tokens plus the longest answer need {recipe.longest_text} positions but the context of "
            f"{policy} is {context}; lower the token limits"
        )


def make_data(run: Run) -> PreparedData:
    """Read, filter and divide the recipe's rows into `checkpoints/data`; token counts are of the base model's
    tokenizer."""
    folder = run.folder("data")
    if not run.skips("data"):
        with run.stage("data") as stage:
            run.progress("reading and filtering the data")
            recipe = run.recipe
            rows = load_rows(recipe.dataset, recipe.data, recipe.seed)
            check_pairs(rows)
            data = prepare(rows, recipe.data, load_tokenizer(run.folder("base")), recipe.seed)
            if empty := [name for name, split in data.splits.items() if not len(split)]:
                raise InputError(
                    f"{rows.name}: no row is left for {' and '.join(empty)}, and the series needs every split; give "
                    f"data.shares.{empty[0]} a share above 0"
                )
            stage.results = {"kind": data.kind, "rows": {name: len(split) for name, split in data.splits.items()}}
            with stage.publish() as temporary:
                data.save(temporary)
    return PreparedData.load(folder)
