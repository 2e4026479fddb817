"""How much a run writes, stage by stage, from its settings, and whether there is room for it.

Weights are written in fp32. A stage needs the most at its end, when its checkpoints are still there beside what it
publishes; afterwards only that stays. What is downloaded lies in the hub's own cache and is not counted here.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import known_as
from rlhf_utils.runs.costs import OTHERS, SHAPES, WEIGHT, Shape, rows_of, shape_of
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import LoraSettings

# trl keeps two checkpoints and removes the older one when the third is whole; PPO likewise, and the best one.
_TRAINER_CHECKPOINTS = 3
# Of fp32 weights: the weights themselves and Adam's two moments.
_TRAINING = 3 * WEIGHT
# A tokenizer of GPT-2's size, per entry of the vocabulary, and the configuration files of a model's folder.
_TOKENIZER, _CONFIGURATION = 60, 10e3
# Rows are kept as text, about so many bytes for a token of prompt and of each of two answers.
_TOKEN = 4.5
# Notebooks with their pictures, plots, samples and the report; about 4 MB in the runs of this repository.
_PAGES = 5e6
# Estimates are about so far off; a run is only refused where there is less than that part of what it seems to need.
_CERTAIN = 0.8


@dataclass(frozen=True)
class StageBytes:
    """Bytes that a stage has in its work folder at most, and that it leaves in its checkpoint folder."""

    work: float
    left: float


def stage_bytes(recipe: Recipe, stage: str, shape: Shape) -> StageBytes:
    """What `stage` writes when the policy has `shape`."""
    ready = getattr(recipe.models, stage, None)
    size = WEIGHT * _parameters_of(ready, shape) + _TOKENIZER * shape.vocabulary + _CONFIGURATION
    if stage == "data":
        texts = recipe.data.max_prompt_tokens + 2 * recipe.data.max_response_tokens
        return StageBytes(0.0, 0.5 * _TOKEN * sum(rows_of(recipe).values()) * texts)
    if stage == "evaluation":
        return StageBytes(0.0, _PAGES)
    if stage == "overoptimise":
        weak = _TRAINER_CHECKPOINTS * _TRAINING * adapter_parameters(shape, recipe.reward_model.lora)
        return StageBytes(weak + size + _TRAINING * shape.parameters, 0.0)
    if ready or stage == "base" or (stage == "sft" and recipe.tuned_policy):
        return StageBytes(0.0, size)
    if stage == "sft":
        return StageBytes(
            _TRAINER_CHECKPOINTS * (_TRAINING * shape.parameters + size - WEIGHT * shape.parameters), size
        )
    if stage == "ppo":
        return _ppo_bytes(recipe, shape, size)
    adapter = adapter_parameters(shape, recipe.qlora if stage == "sft_qlora" else recipe.reward_model.lora)
    work = (_TRAINER_CHECKPOINTS * _TRAINING + WEIGHT) * adapter + _TRAINER_CHECKPOINTS * _TOKENIZER * shape.vocabulary
    return StageBytes(work, size + (WEIGHT * adapter if stage == "sft_qlora" else 0.0))


def _ppo_bytes(recipe: Recipe, shape: Shape, size: float) -> StageBytes:
    """Every policy along the way stays, for the frontier; what resuming needs stays for the newest and the best."""
    ppo = recipe.ppo
    # With a budget also the last policy within it.
    saves = -(-ppo.updates // ppo.save_every) + (ppo.kl_budget is not None)
    learnt = shape.parameters if ppo.method == "full" else adapter_parameters(shape, ppo.lora)
    policy = size + (WEIGHT * learnt if ppo.method != "full" else 0.0)
    if ppo.critic == "separate":
        learnt += shape.parameters
    resumable = min(saves, ppo.keep_checkpoints + 2)
    # The policies are published by linking them: they are never there twice.
    return StageBytes(resumable * _TRAINING * learnt, size + saves * policy)


def adapter_parameters(shape: Shape, lora: LoraSettings) -> int:
    """Weights of a LoRA adapter on GPT-2's matrices: rank x (inputs + outputs) for each of them, in every layer."""
    widths = {
        ("attn.c_attn", "attention", "attention_in"): 1 + 3,
        ("attn.c_proj", "attention", "attention_out"): 1 + 1,
        ("mlp.c_fc", "mlp", "mlp_in"): 1 + 4,
        ("mlp.c_proj", "mlp", "mlp_out"): 4 + 1,
    }
    wanted = set(lora.modules)
    meant = [
        size
        for (name, *places), size in widths.items()
        if wanted & {name, name.partition(".")[2], *places, "all-linear"}
    ]
    return shape.layers * lora.rank * shape.width * sum(meant)


def _parameters_of(ready: str | None, shape: Shape) -> float:
    name = known_as(ready) if ready else None
    return SHAPES[name].parameters if name in SHAPES else OTHERS.get(name, shape.parameters)


def needed_bytes(recipe: Recipe, stages: Collection[str]) -> float | None:
    """The most that making `stages`, in this order, adds to the disk at one time; None where the policy's size is not
    known."""
    shape = shape_of(recipe)
    if shape is None:
        return None
    left = most = 0.0
    for stage in stages:
        part = stage_bytes(recipe, stage, shape)
        left += part.left
        most = max(most, left + part.work)
    return most


def check_room(run: Run, stages: Collection[str]) -> str | None:
    """One line on what making `stages` of `run` needs and what is free; None where there is nothing to say.

    Raises InputError where it clearly does not fit.
    """
    needed = needed_bytes(run.recipe, stages)
    if not needed:
        return None
    free = shutil.disk_usage(run.root).free
    line = f"needs about {_size(needed)} on disk, {_size(free)} free in {run.root}"
    if free < _CERTAIN * needed:
        raise InputError(
            f"{line}; free some space, choose another --output-dir, or save less often (--set ppo.save_every=...)"
        )
    return line


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
