"""LoRA adapters on any causal language model: a recipe says where, and the architecture's own names follow."""

from __future__ import annotations

import contextlib
import re

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_utils.models.weights import plain_tensors, some
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.hub import model_folder
from rlhf_utils.platforms.names import Source
from rlhf_utils.settings.sections import LORA_PLACES, LoraSettings

_LAYER = re.compile(r"^(.*?\.\d+)\.(.+)$")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


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
    """The names of the layers that `settings.modules` means in the model of `config`, and whether they are Conv1D."""
    layers, found = _layers(config), {}
    for wanted in settings.modules:
        hits = {n: conv for n, (places, conv) in layers.items() if wanted in places or f".{n}".endswith(f".{wanted}")}
        if not hits:
            raise InputError(
                f"lora.modules: a {config.model_type} model has no {wanted!r}; choose among {', '.join(LORA_PLACES)} "
                f"or its own layers: {', '.join(sorted(layers)) or 'none that a LoRA adapter can be put on'}"
            )
        found |= hits
    return sorted(found), any(found.values())


def _layers(config: PretrainedConfig) -> dict[str, tuple[set[str], bool]]:
    """The linear layers inside the blocks of the model of `config` by their names there: the places that each belongs
    to, and whether it is a Conv1D."""
    with torch.device("meta"):
        trunk: PreTrainedModel = AutoModel.from_config(config)
    members: dict[tuple[str, str], list[tuple[str, nn.Module]]] = {}
    for path, module in trunk.named_modules():
        if (parts := _LAYER.match(path)) and isinstance(module, nn.Linear | Conv1D):
            block, name = parts.groups()
            members.setdefault((block, "attention" if _ATTENTION.search(name) else "mlp"), []).append((name, module))
    found: dict[str, tuple[set[str], bool]] = {}
    for (_, kind), layers in members.items():
        for name, module in layers:
            # The last linear layer of an attention or an MLP is its output.
            places = {"all-linear", kind, f"{kind}_out" if name == layers[-1][0] else f"{kind}_in"}
            found[name] = places | found.get(name, (set(),))[0], isinstance(module, Conv1D)
    return found


def merge_adapter(model: PreTrainedModel, adapter: Source) -> PreTrainedModel:
    """`model` (in fp32) with the LoRA adapter at `adapter` added into its weights: exact to 4e-7, while merging into
    4-bit weights costs about 7 %. Raises InputError for a kind that cannot be merged, or does not fit the model."""
    return merged_with_names(model, adapter)[0]


def merged_with_names(model: PreTrainedModel, adapter: Source) -> tuple[PreTrainedModel, set[str]]:
    """See `merge_adapter`; also the names of the weights that the adapter brings."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights

    folder = model_folder(adapter)
    settings = PeftConfig.from_pretrained(folder)
    if settings.is_prompt_learning:
        raise InputError(f"{adapter} is a {settings.peft_type.value} adapter; only LoRA and its kin can be merged")
    kinds = {file.suffix for file in folder.glob("adapter_model.*")}
    if not kinds & {".safetensors", ".bin"}:
        raise InputError(f"{adapter} is an adapter without weights (adapter_model.safetensors); save it again")
    with contextlib.nullcontext() if ".safetensors" in kinds else plain_tensors(adapter):
        weights = load_peft_weights(folder, device="cpu")
    if settings.task_type == "CAUSAL_LM":
        settings.task_type = None  # peft would ask the model to generate, and a classifier's trunk cannot
    wrapped = PeftModel.from_pretrained(model, folder, config=settings)
    wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    found = {"missing": wanted - set(weights), "not of it": set(weights) - wanted - set(wrapped.state_dict())}
    if told := [f"{what} {some(names)}" for what, names in found.items() if names]:
        raise InputError(f"{adapter} does not fit the model it is put on ({'; '.join(told)}); give the base it is of")
    return wrapped.merge_and_unload(), {key.removeprefix("base_model.model.") for key in weights}
