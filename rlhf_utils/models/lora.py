"""LoRA adapters on any causal language model: a recipe says where, and the architecture's own names follow."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import Source, model_folder
from rlhf_utils.settings.sections import LORA_PLACES, LoraSettings

_LAYER = re.compile(r"^(.*?\.\d+)\.(.+)$")


def lora_config(settings: LoraSettings, task: str, config: PretrainedConfig):
    """peft's configuration for `settings` on the model of `config`; `task` is `CAUSAL_LM` or `SEQ_CLS` (whose `score`
    head peft trains and saves). Raises InputError where the model has nothing that `settings.modules` names."""
    from peft import LoraConfig

    modules, transposed = lora_modules(settings, config)
    # GPT-2's Conv1D holds its weight the other way round (`fan_in_fan_out`). So it is in the fp32 model that an adapter
    # is merged into, also where it was trained on 4-bit weights, which are all linear layers.
    how = {"task_type": task, "target_modules": modules, "fan_in_fan_out": transposed}
    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, **how)


def lora_modules(settings: LoraSettings, config: PretrainedConfig) -> tuple[list[str], bool]:
    """The names, inside a block, of the layers that `settings.modules` means in this model, and if they are Conv1D."""
    with torch.device("meta"):
        trunk: PreTrainedModel = AutoModel.from_config(config)
    parts: dict[tuple[str, str], list[str]] = {}
    kinds: dict[str, type] = {}
    for path, module in trunk.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and (found := _LAYER.match(path)):
            block, name = found.groups()
            part = "attention" if re.search("attn|attention", name, re.IGNORECASE) else "mlp"
            parts.setdefault((block, part), []).append(name)
            kinds[name] = type(module)
    places: dict[str, set[str]] = {}
    for (_, part), names in parts.items():
        for name in names:
            # The last linear layer of an attention or an MLP is its output.
            end = "out" if name == names[-1] else "in"
            places.setdefault(name, set()).update({"all-linear", part, f"{part}_{end}"})
    chosen = set()
    for wanted in settings.modules:
        hits = {name for name in places if wanted in places[name] or f".{name}".endswith(f".{wanted}")}
        if not hits:
            raise InputError(
                f"lora.modules: a {config.model_type} model has no {wanted!r}; choose among {', '.join(LORA_PLACES)} "
                f"or its own layers: {', '.join(sorted(places)) or 'none that a LoRA adapter can be put on'}"
            )
        chosen |= hits
    return sorted(chosen), any(kinds[name] is Conv1D for name in chosen)


def merge_adapter(model: PreTrainedModel, adapter: Source) -> PreTrainedModel:
    """`model` (in fp32) with the LoRA adapter at `adapter` added into its weights: exact to 4e-7, while merging into
    4-bit weights costs about 7 %. Raises InputError for a kind that cannot be merged, or does not fit the model."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights

    folder = model_folder(adapter)
    settings = PeftConfig.from_pretrained(folder)
    if settings.is_prompt_learning:
        raise InputError(f"{adapter} is a {settings.peft_type.value} adapter; only LoRA and its kin can be merged")
    if not any(folder.glob("adapter_model.*")):
        raise InputError(f"{adapter} is an adapter without weights (adapter_model.safetensors); save it again")
    if settings.task_type == "CAUSAL_LM":
        settings.task_type = None  # peft would ask the model to generate, and a classifier's trunk cannot
    with reading(adapter):
        found = set(load_peft_weights(folder, device="cpu"))
        wrapped = PeftModel.from_pretrained(model, folder, config=settings)
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if misfits := (wanted - found) | (found - wanted - set(wrapped.state_dict())):
        trouble = f"missing, or not of it: {some(misfits)}"
        raise InputError(f"{adapter} does not fit the model it is put on ({trouble}); give the base it is of")
    return wrapped.merge_and_unload()


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """In the block, which reads a model, what its files make a library raise becomes one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if type(error).__name__ == "UnpicklingError":
            reason = "its .bin file holds more than plain tensors, and code in it is never run"
        elif not isinstance(error, KeyError | OSError | RuntimeError | SafetensorError | ValueError):
            raise
        raise InputError(f"cannot load {source}: {reason}; give a folder written by save_pretrained") from None


def some(names: Collection[str]) -> str:
    """A few of `names` and how many there are."""
    shown = ", ".join(sorted(names)[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
