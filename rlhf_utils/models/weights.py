"""Reading weights: no model runs with a weight that was not loaded, and no code runs while one is read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache

from transformers import PreTrainedModel

from rlhf_utils.platforms.errors import InputError

# Without safetensors transformers would ask a service to convert the weights, and read them from there another time.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# Buffers that older versions saved with the weights; they are computed now.
_COMPUTED = re.compile(r"(?:\battn|attention)\.bias$|(?:^|[._])(?:masked_bias|inv_freq|position_ids|bias_mask)$")


def read_model(kind, folder, source: object, **settings) -> tuple[PreTrainedModel, set[str]]:
    """The model in `folder`, of the automatic class `kind`, and the weights of its head that the file lacks.

    What stands before every name in the file, as torch.compile and DDP leave it, is taken off. Raises InputError, which
    calls the model `source`, where a weight of the trunk is missing, has another shape, or has no place in the model;
    of a head only the shape is looked at.
    """
    model, info = _read(kind, folder, source, settings)
    pairs = [(wanted, name) for wanted in info["missing_keys"] for name in info["unexpected_keys"]]
    before = {name.removesuffix(wanted) for wanted, name in pairs if name.endswith(f".{wanted}")}
    if _misfits(model, info) and len(before) == 1:
        renaming = {f"^{re.escape(before.pop())}": ""}
        model, info = _read(kind, folder, source, {**settings, "key_mapping": renaming})
        vars(model).pop("_weight_conversions", None)  # else save_pretrained would put the prefix back
    if misfits := _misfits(model, info):
        raise InputError(
            f"{source}: its weights do not fit its config.json ({'; '.join(misfits)}); save the model again with "
            "save_pretrained, without wrappers and with the config.json that belongs to it"
        )
    return model, set(info["missing_keys"])


def some(names: Collection[str]) -> str:
    """A few of `names` and how many there are."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextmanager
def plain_tensors(source: object) -> Iterator[None]:
    """For a block that reads nothing but tensors from a pickled file: says so, and what to do where it holds more."""
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:  # pickle's own, torch's, zip's
        raise InputError(
            f"{source}: its .bin file cannot be read as plain tensors ({type(error).__name__}); it is damaged, or "
            "holds code, which is never run: give the model saved as safetensors"
        ) from None
    _say_pickled(str(source))


@lru_cache
def _say_pickled(source: str) -> None:
    print(f"{source} has no safetensors; its .bin file is read as plain tensors (weights_only=True)", file=sys.stderr)


def _read(kind, folder, source: object, settings: dict) -> tuple[PreTrainedModel, dict]:
    settings = {**settings, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if any(folder.glob("*.safetensors")):
        return kind.from_pretrained(folder, use_safetensors=True, **settings)
    with plain_tensors(source):
        return kind.from_pretrained(folder, use_safetensors=False, weights_only=True, **settings)


def _misfits(model: PreTrainedModel, info: dict) -> list[str]:
    """What is wrong: weights of the trunk that the file lacks, those in it that the trunk has no place for, and wrong
    shapes. What the file has for other heads is no misfit."""
    parts = {part for part, _ in model.base_model.named_children()}

    def of_trunk(names: Collection[str]) -> set[str]:
        prefix = f"{model.base_model_prefix}."
        return {name for name in names if name.removeprefix(prefix).partition(".")[0] in parts}

    lost, unexpected = of_trunk(info["missing_keys"]), set(info["unexpected_keys"])
    extra = {name for name in (unexpected if lost else of_trunk(unexpected)) if not _COMPUTED.search(name)}
    wrong = [
        f"{weight} has shape {list(there)} in the file, and {list(wanted)} is wanted here"
        for weight, there, wanted in sorted(info["mismatched_keys"])
    ]
    named = {"missing": lost, "not of this model": extra}
    return [*(f"{what} {some(names)}" for what, names in named.items() if names), *wrong[:1]]
