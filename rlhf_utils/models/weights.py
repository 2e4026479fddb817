"""Reading weights: no model runs with a weight that was not loaded, and no code runs while one is read."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from functools import lru_cache

from transformers import PreTrainedModel

from rlhf_utils.platforms.errors import InputError

# Without safetensors transformers would ask a service to convert the weights, and read them from there another time.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

# What torch.compile, DDP, FSDP and activation checkpointing leave in the names of weights.
_WRAPPERS = "_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"
# Buffers that older versions saved with the weights; they are computed now.
_COMPUTED = re.compile(r"(?:\battn|attention)\.bias$|(?:^|[._])(?:masked_bias|inv_freq|position_ids|bias_mask)$")


def read_model(kind, folder, source: object, **settings) -> tuple[PreTrainedModel, set[str]]:
    """The model in `folder`, of the automatic class `kind`, and the weights of its head that the file lacks.

    Safetensors where there are any, else `.bin` files, from which nothing but tensors is read (`weights_only=True`).
    Wrappers in the names of the weights are taken off. Raises InputError, which calls the model `source`, where a
    weight of the trunk is missing, has another shape, or has no place in the model; of a head only the shape is
    looked at.
    """
    model, info = _read(kind, folder, source, settings)
    if _misfits(model, info) and info["unexpected_keys"]:
        mapping = _prefix(info["missing_keys"], info["unexpected_keys"]) or {rf"^(?:(?:{'|'.join(_WRAPPERS)})\.)+": ""}
        mapping |= {rf"\.{wrapper}\.": "." for wrapper in _WRAPPERS}
        model, info = _read(kind, folder, source, {**settings, "key_mapping": mapping})
        # Else save_pretrained would put the wrappers back.
        vars(model).pop("_weight_conversions", None)
    if misfits := _misfits(model, info):
        told = [f"{what} {some(names)}" for what, names in misfits.items()]
        raise InputError(
            f"{source}: its weights do not fit its config.json ({'; '.join(told)}); save the model again with "
            "save_pretrained, without wrappers and with the config.json that belongs to it"
        )
    if wrong := sorted(info["mismatched_keys"]):
        weight, there, wanted = wrong[0]
        raise InputError(
            f"{source}: {weight} has shape {list(there)} in the file, and {list(wanted)} is wanted here; give a model "
            "with as many outputs as this stage has, and with the config.json that belongs to it"
        )
    return model, set(info["missing_keys"])


def some(names: Collection[str]) -> str:
    """A few of `names` and how many there are."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@lru_cache
def say_pickled(source: str) -> None:
    """Say once that weights come from a pickled file."""
    print(f"{source} has no safetensors; its .bin file is read as plain tensors (weights_only=True)", file=sys.stderr)


def unreadable(source: object, error: Exception) -> InputError:
    """What to raise for a pickled file that holds more than tensors, or is damaged."""
    told = str(error)
    reason = re.search(r"GLOBAL [\w.]+|Unsupported.*?(?=\. |\n|$)", told) or re.search(r".+?(?=\. |\n|$)", told)
    return InputError(
        f"{source}: its .bin file cannot be read as plain tensors ({reason[0] if reason else type(error).__name__}); "
        "it is damaged, or holds code, which is never run: give the model saved as safetensors"
    )


def _read(kind, folder, source: object, settings: dict) -> tuple[PreTrainedModel, dict]:
    settings = {**settings, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        return kind.from_pretrained(folder, use_safetensors=True, **settings)
    except OSError as error:
        if "safetensors" not in str(error):
            raise
    try:
        found = kind.from_pretrained(folder, use_safetensors=False, weights_only=True, **settings)
    except (OSError, InputError):
        raise
    except Exception as error:  # pickle's own, torch's, zip's
        raise unreadable(source, error) from None
    say_pickled(str(source))
    return found


def _prefix(missing: Collection[str], unexpected: Collection[str]) -> dict[str, str]:
    """The renaming that takes off what stands before every name in the file, where that is one and the same."""
    before = {name[: -len(wanted)] for wanted in missing for name in unexpected if name.endswith(f".{wanted}")}
    return {f"^{re.escape(before.pop())}": ""} if len(before) == 1 else {}


def _misfits(model: PreTrainedModel, info: dict) -> dict[str, set[str]]:
    """Weights of the trunk that are missing in the file, and those in the file that the trunk has no place for; what
    the file has for other heads is no misfit."""
    parts = {part for part, _ in model.base_model.named_children()}

    def of_trunk(names: Collection[str]) -> set[str]:
        bare = {name: name.removeprefix(f"{model.base_model_prefix}.") for name in names}
        return {name for name, inner in bare.items() if inner.partition(".")[0] in parts}

    lost, unexpected = of_trunk(info["missing_keys"]), set(info["unexpected_keys"])
    extra = {name for name in (unexpected if lost else of_trunk(unexpected)) if not _COMPUTED.search(name)}
    return {what: names for what, names in {"missing": lost, "not of this model": extra}.items() if names}
