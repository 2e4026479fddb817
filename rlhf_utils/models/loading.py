"""Loading and saving models, in fp32; autocast and 4-bit storage are the exceptions that say so."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf_utils.models.language_model import eos_ids
from rlhf_utils.models.lora import merged_with_names
from rlhf_utils.models.weights import read_model, some
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.hub import ADAPTER_CONFIG, model_folder
from rlhf_utils.platforms.names import Source, is_folder, is_there
from rlhf_utils.platforms.runtime import Device

# To see whether a model's weights fit it: their names and shapes are read, and nothing else.
SHAPES_ONLY = Device("meta", "shapes only", "fp32", 0)
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")


def reads_ahead(config: PretrainedConfig) -> bool:
    """Whether a model sees the tokens that follow, as BERT and T5 do."""
    masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return masked or config.is_encoder_decoder


def load_config(source: Source, base: str | None = None) -> PretrainedConfig:
    """The configuration of the model at `source`, of an adapter that of its base; no weights are loaded."""
    below = adapter_base(source, base)
    return load_config(below) if below else _from_pretrained(transformers.AutoConfig, source)


def load_tokenizer(source: Source, base: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `source`. One without a padding token, like GPT-2's, pads with its EOS; masks tell them apart.
    One that does not name its EOS has the model's."""
    tokenizer = load_classifier_tokenizer(source, base)
    if tokenizer.eos_token_id is None and (ends := eos_ids(load_config(source, base))):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer at {source} has no end-of-text token to end answers with; add an eos_token")
    return padding(tokenizer)


def load_classifier_tokenizer(source: Source, base: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a classifier, which need not have an end-of-text token."""
    below, folder = adapter_base(source, base), model_folder(source, weights=False)
    if below is not None and not (folder / "tokenizer_config.json").is_file():
        return load_classifier_tokenizer(below)
    if folder.is_dir() and not any(next(folder.glob(name), None) for name in _TOKENIZER_FILES):
        raise InputError(f"{source} has no tokenizer; save it there with tokenizer.save_pretrained")
    return padding(_from_pretrained(transformers.AutoTokenizer, source))


def padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """`tokenizer`, or where it has no padding token one like it that pads with its EOS."""
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(source: Source, device: Device, dropout: bool = False, base: str | None = None) -> PreTrainedModel:
    """A causal language model in fp32 on `device`.

    Dropout is off unless asked for: PPO compares log-probabilities of the same tokens between passes, and dropout would
    show up there as KL. GPT-2's `gelu_new` is replaced by `gelu_pytorch_tanh`, the same function as one fused kernel.
    """
    model = _load_policy(source, base, device)
    return (model if dropout else without_dropout(model)).to(device.kind)


def load_policy_4bit(source: Source, device: Device, settings=None) -> PreTrainedModel:
    """The model at `source` with its linear layers stored in 4-bit NormalFloat (Dettmers et al. 2023,
    arXiv:2305.14314), or as `settings`, a BitsAndBytesConfig, say."""
    import bitsandbytes

    if adapter_base(source):
        raise InputError(f"{source} is an adapter, and 4-bit weights need a whole model: merge it into its base first")
    # Of several processes accelerate wants to see each one's own GPU named, and "cuda" alone is no device to all of it.
    place, dtype = "cpu" if device.kind == "cpu" else f"cuda:{torch.cuda.current_device()}", device.autocast_dtype
    how = {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype or torch.float32}
    settings = settings or transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **how)
    model = without_dropout(_load_policy(source, quantization_config=settings, device_map={"": place}))
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16 an evaluation pass would repack the weights into a form that cannot be trained.
            module.support_avx512bf16_for_cpu = False
    return model


def has_bitsandbytes() -> bool:
    """Whether 4-bit training is possible here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def load_reward_model(source: Source, device: Device | None = None, fresh_head=False, base=None) -> PreTrainedModel:
    """A sequence classifier with one output, dropout off; with `fresh_head` a language model gets a randomly
    initialized one. Raises InputError where there is no trained head otherwise, and where it has more outputs."""
    return _load_classifier(source, device, fresh_head, base, num_labels=1)


def load_classifier(source: Source, device: Device, labels: Sequence[str] | None = None, base=None) -> PreTrainedModel:
    """A text classifier, dropout off; with `labels` a language model gets a randomly initialized head for them."""
    heads = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}} if labels else {}
    return _load_classifier(source, device, labels is not None, base, **heads)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with every dropout of it off, whatever it is called: layers, and rates in modules or configuration."""
    for owner in (model.config, *model.modules()):
        names = [name for name, value in vars(owner).items() if "drop" in name and type(value) in (int, float)]
        for name in [*names, "p"] if isinstance(owner, nn.modules.dropout._DropoutNd) else names:
            setattr(owner, name, 0.0)
    return model


def fp32_trainables(model: nn.Module) -> None:
    """Put trainable parameters back to fp32: trl casts adapters of 4-bit models to bf16, which fp16 and CPU training
    break on."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def checkpoint_gradients(model: nn.Module) -> None:
    """Recompute the layers in the backward pass instead of keeping them; in effect while the model is in training mode.
    Raises InputError for an architecture that cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        name = type(model).__name__
        raise InputError(f"{name} does not support gradient checkpointing; set gradient_checkpointing to false")
    # The reentrant form loses the gradient where a layer's input needs none, as under an adapter.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """`trainable_parameters` and `total_parameters`; a 4-bit weight counts as the number it stands for."""
    trainable = model.num_parameters(only_trainable=True)
    return {"trainable_parameters": trainable, "total_parameters": model.num_parameters()}


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model (safetensors) and tokenizer so that `folder` loads with `from_pretrained` alone."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def copy_model(source: Path, folder: Path) -> None:
    """Copy a saved model's files into `folder`, leaving out what is not part of a model."""
    for file in source.iterdir():
        if file.is_file() and file.name != "stage.json":
            shutil.copy2(file, folder / file.name)


def adapter_base(source: Source, base: str | None = None) -> str | None:
    """What the LoRA adapter at `source` was trained on, or `base` where it is given; None where `source` is a model of
    its own."""
    settings = _adapter_settings(source)
    if settings is None or base:
        return base if settings else None
    named, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not named or (is_folder(named) and not is_there(named)):
        trouble = f"belongs to the base {named}, which is not there" if named else "does not say of which model it is"
        raise InputError(f"the adapter {source} {trouble}; name its base with --set models.adapter_base=FOLDER_OR_ID")
    return named if not revision or is_folder(named) else f"{named}@{revision}"


def _adapter_settings(source: Source) -> dict | None:
    """The adapter_config.json at `source`; None where `source` is a model of its own."""
    folder = model_folder(source, weights=False)
    about, weights = folder / ADAPTER_CONFIG, next(folder.glob("adapter_model.*"), None)
    if not about.is_file() or (weights is None and (folder / "config.json").is_file()):
        return None
    return read_json(about)


def _load_policy(source: Source, base: str | None = None, device: Device | None = None, **settings) -> PreTrainedModel:
    model, headless = _load_model(AutoModelForCausalLM, source, base, ("CAUSAL_LM",), device, **settings)
    if headless:
        raise InputError(f"{source} is no language model: its weights lack {some(headless)}")
    return model


def _load_classifier(source: Source, device: Device | None, fresh_head: bool, base: str | None, **heads):
    tasks = ("SEQ_CLS", "CAUSAL_LM") if fresh_head else ("SEQ_CLS",)
    model, headless = _load_model(transformers.AutoModelForSequenceClassification, source, base, tasks, device, **heads)
    if headless and not fresh_head:
        raise InputError(
            f"{source} has no trained head ({some(headless)} is not among its weights), so its scores would be random; "
            "name a model that was saved as a sequence classifier"
        )
    if model.config.pad_token_id is None:
        # Only transformers' own forward pass asks for it: here lengths say what is padding.
        model.config.pad_token_id = next(iter(eos_ids(model)), 0)
    without_dropout(model)
    return model.to(device.kind) if device else model


def _load_model(
    kind, source: Source, base: str | None, tasks: Sequence[str], device: Device | None = None, **settings
) -> tuple[PreTrainedModel, set[str]]:
    """A model in fp32 and the weights of its head that nobody has trained; an adapter, of one of `tasks`, is merged
    into the fp32 weights of its base."""
    if below := adapter_base(source, base):
        task = _adapter_settings(source).get("task_type")
        if task and task not in tasks:
            raise InputError(f"{source} is an adapter of another task ({task}); {' or '.join(tasks)} is wanted here")
        # The base of a classifier's adapter may well be a language model.
        model, headless = _load_model(kind, below, None, ("CAUSAL_LM", *tasks), **settings)
        try:
            merged, own = merged_with_names(model, source)
        except (KeyError, OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]  # torch says after its first line which weight it is
            raise InputError(f"the adapter at {source} does not fit {below}: {reason}") from None
        return merged, headless - own
    config = load_config(source)
    if getattr(config, "quantization_config", None):
        raise InputError(f"{source} is stored quantized, and this series trains fp32 weights; name the full model")
    if getattr(config, "activation_function", "") == "gelu_new":
        settings["activation_function"] = "gelu_pytorch_tanh"
    if device == SHAPES_ONLY:
        settings["device_map"] = "meta"
    model, headless = _from_pretrained(kind, source, dtype=torch.float32, **settings)
    # What would keep it from being saved or used: a padding id that is none, and how somebody sampled from it.
    if not 0 <= (model.config.pad_token_id or 0) < model.config.vocab_size:
        model.config.pad_token_id = None
    if (sampling := getattr(model, "generation_config", None)) is not None:
        ids = {"bos_token_id": sampling.bos_token_id, "eos_token_id": sampling.eos_token_id}
        model.generation_config = transformers.GenerationConfig(**ids, pad_token_id=model.config.pad_token_id)
    return model, headless


def _from_pretrained(kind, source: Source, **settings):
    of_weights = kind not in (transformers.AutoConfig, transformers.AutoTokenizer)
    folder, advice = model_folder(source, of_weights), "give a folder written by save_pretrained"
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise InputError(f"{source} is not a model folder: it has no config.json; {advice}")
    if of_weights and not any(next(folder.glob(kind), None) for kind in ("*.safetensors", "*.bin")):
        raise InputError(f"{source} has no weights (*.safetensors); {advice}")
    try:
        return read_model(kind, folder, source, **settings) if of_weights else kind.from_pretrained(folder, **settings)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0][:300]
        raise InputError(f"cannot load {source}: {reason}; {advice}") from None
