"""Loading, adapting and saving models. Everything is kept in fp32; autocast and 4-bit storage are the exceptions
that say so."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import file_exists, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_utils.errors import InputError
from rlhf_utils.files import read_json
from rlhf_utils.names import Source, hub_name, is_folder, is_there, local_path
from rlhf_utils.runtime import Device
from rlhf_utils.settings import LoraSettings

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def load_config(source: Source) -> PretrainedConfig:
    """The configuration of the model at `source`; no weights are loaded."""
    return _from_pretrained(AutoConfig, adapter_base(source) or source)


def load_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer at `source`. One without a padding token, like GPT-2's, pads with its EOS; masks tell them
    apart."""
    tokenizer = _tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer at {source} has no end-of-text token, so answers could never end; add an eos_token"
        )
    return tokenizer


def load_policy(source: Source, device: Device, dropout: bool = False) -> PreTrainedModel:
    """A causal language model in fp32 on `device`.

    Dropout is off unless asked for: PPO compares log-probabilities of the same tokens between passes, and dropout would
    show up there as KL. GPT-2's `gelu_new` is replaced by `gelu_pytorch_tanh`, the same function as one fused kernel.
    """
    model = _load_model(
        AutoModelForCausalLM,
        source,
        **_fast_gelu(source),
        **({} if dropout else _dropout_off(source)),
    )
    return model.to(device.kind)


def load_policy_4bit(source: Source, device: Device) -> PreTrainedModel:
    """The model at `source` with its linear layers stored in 4-bit NormalFloat (Dettmers et al. 2023,
    arXiv:2305.14314)."""
    import bitsandbytes

    # Of several processes accelerate wants to see each one's own GPU named, and "cuda" alone is no device to all of it.
    place = "cpu" if device.kind == "cpu" else f"cuda:{torch.cuda.current_device()}"
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=device.autocast_dtype or torch.float32,
    )
    model = _from_pretrained(
        AutoModelForCausalLM,
        source,
        dtype=torch.float32,
        quantization_config=settings,
        device_map={"": place},
        **_fast_gelu(source),
        **_dropout_off(source),
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16 an evaluation pass would repack the weights into a form that cannot be trained.
            module.support_avx512bf16_for_cpu = False
    return model


def load_reward_model(source: Source, device: Device | None = None) -> PreTrainedModel:
    """A sequence classifier with one output logit, dropout off. A language model at `source` gets a fresh random
    head."""
    model = _load_model(
        AutoModelForSequenceClassification,
        source,
        num_labels=1,
        **_fast_gelu(source),
        **_dropout_off(source),
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = model.config.eos_token_id
    return model.to(device.kind) if device else model


def load_classifier(source: Source, device: Device, labels: Sequence[str] | None = None) -> PreTrainedModel:
    """A text classifier, dropout off; with `labels` a language model gets a fresh random head for them."""
    heads = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    model = _load_model(
        AutoModelForSequenceClassification, source, **heads, **_fast_gelu(source), **_dropout_off(source)
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = model.config.eos_token_id
    return model.to(device.kind)


def load_classifier_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of a classifier, which need not have an end-of-text token."""
    return _tokenizer(source)


def has_bitsandbytes() -> bool:
    """Whether 4-bit training is possible here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def lora_config(settings: LoraSettings, task: str):
    """peft's configuration for `settings`; `task` is `CAUSAL_LM` or `SEQ_CLS` (whose `score` head peft trains and
    saves)."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        task_type=task,
        target_modules=list(settings.modules),
        fan_in_fan_out=True,
    )


def merge_adapter(base: PreTrainedModel, adapter: Source) -> PreTrainedModel:
    """`base` (in fp32) with the LoRA adapter at `adapter` added into its weights.

    Merging into the fp32 base is exact to 4e-7; merging into the 4-bit base it was trained on costs about 7 %.
    """
    from peft import PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    name, where = hub_name(adapter)
    if is_folder(adapter):
        check_weights(adapter)
        if not (local_path(adapter) / SAFETENSORS_WEIGHTS_NAME).is_file():
            # peft would look for pickled ones, whatever other safetensors lie there.
            raise InputError(
                f"the adapter {adapter} has no {SAFETENSORS_WEIGHTS_NAME}; save it again with save_pretrained"
            )
    else:
        try:
            hf_hub_download(name, SAFETENSORS_WEIGHTS_NAME, **where)
        except EntryNotFoundError:
            # peft would read pickled ones instead.
            raise InputError(
                f"the adapter {adapter} has no safetensors on the hub, or cannot be reached; name a revision that has "
                "them (NAME@REVISION), or convert the weights and give the folder"
            ) from None
    return PeftModel.from_pretrained(base, name, **where).merge_and_unload()


def fp32_trainables(model: nn.Module) -> None:
    """Put trainable parameters back to fp32: trl casts adapters of 4-bit models to bf16, which fp16 and CPU
    training break on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """`trainable_parameters` and `total_parameters`; a 4-bit weight counts as the number it stands for."""

    def size(parameter: nn.Parameter) -> int:
        state = getattr(parameter, "quant_state", None)
        return state.shape.numel() if state is not None else parameter.numel()

    parameters = list(model.parameters())
    return {
        "trainable_parameters": sum(size(p) for p in parameters if p.requires_grad),
        "total_parameters": sum(size(p) for p in parameters),
    }


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (safetensors) and tokenizer so that `folder` loads with `from_pretrained` alone."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def copy_model(source: Path, folder: Path) -> None:
    """Copy a saved model's files into `folder`, leaving out what is not part of a model."""
    for file in source.iterdir():
        if file.is_file() and file.name != "stage.json":
            shutil.copy2(file, folder / file.name)


def check_weights(source: Source) -> None:
    """Raise InputError where the folder at `source` has no safetensors: pickled weights can run code when they are
    read, so they are not."""
    folder = local_path(source)
    if any(folder.glob("*.safetensors")):
        return
    if pickled := next(folder.glob("*.bin"), None) or next(folder.glob("*.pt"), None):
        raise InputError(
            f"{source} holds pickled weights ({pickled.name}), which could run code; save it again with "
            "save_pretrained(..., safe_serialization=True)"
        )
    raise InputError(f"{source} has no weights (*.safetensors); give a folder written by save_pretrained")


def adapter_base(source: Source) -> str | None:
    """What the LoRA adapter at `source` was trained on; None where `source` is a model of its own."""
    if is_folder(source):
        folder = local_path(source)
        alone = (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()
        about = folder / ADAPTER_CONFIG if alone else None
    else:
        name, where = hub_name(source)
        about = _hub_adapter(name, **where)
    if about is None:
        return None
    settings = read_json(about)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not base:
        raise InputError(f"{source} is an adapter that does not say of which model (base_model_name_or_path); add it")
    return base if not revision or is_folder(base) else f"{base}@{revision}"


@lru_cache
def _hub_adapter(name: str, subfolder: str | None = None, revision: str | None = None) -> Path | None:
    """The adapter's configuration in a hub repository that holds no model; None where it does, or none is reached."""
    prefix = f"{subfolder}/" if subfolder else ""

    def there(file: str) -> bool:
        return file_exists(name, f"{prefix}{file}", revision=revision)

    try:
        if there("config.json") or not there(ADAPTER_CONFIG):
            return None
        return Path(hf_hub_download(name, ADAPTER_CONFIG, subfolder=subfolder, revision=revision))
    except Exception:  # of several libraries; loading it as a model says what is wrong
        return None


def _load_model(kind, source: Source, **settings) -> PreTrainedModel:
    """A model in fp32; an adapter is merged into the fp32 weights of its base."""
    base = adapter_base(source)
    model = _from_pretrained(kind, base or source, dtype=torch.float32, **settings)
    if base is None:
        return model
    try:
        return merge_adapter(model, source)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise InputError(f"the adapter at {source} does not fit {base}: {reason}") from None


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    base = adapter_base(source)
    own = base is None or (is_folder(source) and (local_path(source) / "tokenizer_config.json").is_file())
    if own and is_folder(source):
        folder = local_path(source)
        if folder.is_dir() and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
            raise InputError(f"{source} has no tokenizer; save it there with tokenizer.save_pretrained")
    tokenizer = _from_pretrained(AutoTokenizer, source if own else base)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _from_pretrained(kind, source: Source, **settings):
    path = local_path(source)
    if is_folder(source) and not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise InputError(
            f"{source} is not a model folder: it has no config.json; give a folder written by save_pretrained"
        )
    name, where = hub_name(source)
    if kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        settings["use_safetensors"] = True
        if is_folder(source):
            check_weights(source)
    try:
        return kind.from_pretrained(name, **where, **settings)
    except (OSError, ValueError, SafetensorError) as error:
        if is_there(source):
            reason = str(error).strip().split("\n")[0][:300]
            raise InputError(f"cannot load {source}: {reason}; give a folder written by save_pretrained") from None
        if all(part in str(error) for part in ("does not appear to have a file named", "safetensors")):
            raise InputError(
                f"{source} has no safetensors on the hub, and pickled weights could run code, so they are not read; "
                "name a revision that has them (NAME@REVISION), or convert the weights and give the folder"
            ) from None
        raise InputError(
            f"cannot load {source} from the Hugging Face hub: it does not exist, needs HF_TOKEN, or there is no "
            "network; use --set policy=FOLDER for a local model, or --scale tiny, which needs none"
        ) from None


def _fast_gelu(source: Source) -> dict[str, str]:
    return (
        {"activation_function": "gelu_pytorch_tanh"}
        if getattr(load_config(source), "activation_function", "") == "gelu_new"
        else {}
    )


def _dropout_off(source: Source) -> dict[str, float]:
    config = load_config(source)
    return {name: value for name, value in _NO_DROPOUT.items() if hasattr(config, name)}


def checkpoint_gradients(model: nn.Module) -> None:
    """Compute the layers again in the backward pass instead of keeping them; in effect while the model is in training
    mode. Raises InputError for an architecture that cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(
            f"{type(model).__name__} does not support gradient checkpointing; set gradient_checkpointing to false"
        )
    # The reentrant form loses the gradient where a layer's input needs none, as under an adapter.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
