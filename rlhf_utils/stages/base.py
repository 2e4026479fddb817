"""Stages `base` and `data`: the model everything starts from, and the rows divided among the stages."""

from __future__ import annotations

from pathlib import Path

from rlhf_utils.data import PreparedData, check_enough, check_rows, load_rows, prepare, pretraining_texts
from rlhf_utils.models.loading import copy_model, load_config, load_policy, load_tokenizer, save_model
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.memory import phase
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.runs.pretraining import cached_base
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import EMBEDDED


def make_base(run: Run) -> dict:
    """Put the base model into `checkpoints/base`: a ready one, or a small GPT-2 trained here on the data's own text.

    The text never contains a prompt or answer that a later stage is evaluated on.
    """
    if run.skips("base"):
        return run.results("base")
    recipe = run.recipe
    with run.stage("base") as stage, stage.publish() as folder:
        if recipe.policy == EMBEDDED:
            if recipe.dataset != EMBEDDED:
                rows = load_rows(recipe.dataset, recipe.data, recipe.seed)
                check_enough(rows, recipe.data, recipe.seed, run.splits)
            run.progress("training the small base model (once per machine)")
            texts = pretraining_texts(recipe.dataset, recipe.data, recipe.base.documents, recipe.seed)
            with phase("train"):
                source = cached_base(texts, recipe.base, recipe.seed, run.progress)
            copy_model(source, folder)
            stage.results = {"documents": len(texts)}
        else:
            fetch_policy(run, recipe.policy, folder)
        stage.results["policy"] = recipe.policy
    return run.results("base")


def fetch_policy(run: Run, source: str, folder: Path) -> None:
    """Put the ready policy at `source` into `folder`: any hub id, folder or adapter that `models.loading` reads."""
    base = run.adapter_base
    check_context(run.recipe, source)
    run.progress(f"loading {source}")
    # Loaded and saved, not copied: a folder may hold weights in several formats, or under names that are none.
    model = load_policy(source, detect_device(), dropout=True, base=base)
    save_model(model, load_tokenizer(source, base), folder)


def publish_ready(run: Run, name: str) -> dict:
    """Stage `name` from the ready policy that the recipe names for it; nothing is trained.

    Raises InputError where its tokenizer is not that of the run: a KL between two vocabularies means nothing.
    """
    source = run.ready_model(name)
    with run.stage(name) as stage, stage.publish() as folder:
        fetch_policy(run, source, folder)
        known = run.tokenizer_folder
        if known != run.folder(name) and known.is_dir():
            if load_tokenizer(known).get_vocab() != load_tokenizer(folder).get_vocab():
                raise InputError(
                    f"models.{name} {source} has another vocabulary than {known}; all policies of a run share one"
                )
        stage.results = {"method": "ready", "source": source}
    return run.results(name)


def check_context(recipe: Recipe, policy: str | Path) -> None:
    """Raise InputError where prompt and answer can grow beyond what the model at `policy` has positions for."""
    context = getattr(load_config(policy, recipe.models.adapter_base), "max_position_embeddings", None)
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
            check_rows(rows, recipe.form)
            data = prepare(rows, recipe.data, load_tokenizer(run.tokenizer_folder), recipe.seed, recipe.template)
            if empty := [name for name in run.splits if not len(data.splits[name])]:
                raise InputError(
                    f"{rows.name}: no row is left for {' and '.join(empty)}, and the series needs every split; give "
                    f"data.shares.{empty[0]} a share above 0"
                )
            sizes = {name: len(split) for name, split in data.splits.items()}
            stage.results = {"kind": data.kind, "rows": sizes}
            with stage.publish() as temporary:
                data.save(temporary)
    return PreparedData.load(folder)
