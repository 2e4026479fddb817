"""Loading and saving models, in fp32; autocast and 4-bit storage are the exceptions that say so."""

import copy
import importlib.util
import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf_utils.models.language_model import eos_ids
from rlhf_utils.models.lora import merge_adapter, reading, some
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import ADAPTER_CONFIG, Source, is_folder, is_there, model_folder
from rlhf_utils.platforms.runtime import Device

# Without safetensors transformers would ask a service to convert the weights, and read them from there another time.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
# Buffers that older versions saved with the weights; they are computed now.
_COMPUTED = re.compile(r"(?:\battn|attention)\.bias$|(?:^|[._])(?:masked_bias|inv_freq|position_ids|bias_mask)$")
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


def check_head(config: PretrainedConfig) -> None:
    """Raise InputError where no reward model can be made of a policy of this configuration; no weights are loaded."""
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        told = f"a reward model needs a linear head called score, which {config.model_type} models lack"
        raise InputError(f"{told}; name another policy, or a ready reward model as models.reward_model")


def load_tokenizer(source: Source, base: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `source`. Without a padding token, as GPT-2's, it pads with its EOS: masks tell them apart."""
    tokenizer = load_classifier_tokenizer(source, base)
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer at {source} has no end-of-text token to end answers with; add an eos_token")
    return tokenizer


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


def load_policy(
    source: Source, device: Device, dropout: bool = False, base: str | None = None, **settings
) -> PreTrainedModel:
    """A causal language model in fp32 on `device`; `settings` go to `from_pretrained`. Dropout is off unless asked for:
    PPO compares log-probabilities of the same tokens between passes, and dropout would show up there as KL. GPT-2's
    `gelu_new` is replaced by `gelu_pytorch_tanh`, the same function as one fused kernel."""
    model, headless = _load(AutoModelForCausalLM, source, device, base, ("CAUSAL_LM",), **settings)
    if headless:
        raise InputError(f"{source} is no language model: its weights lack {some(headless)}")
    if not dropout:
        without_dropout(model)
    return model if "device_map" in settings else model.to(device.kind)


def load_policy_4bit(source: Source, device: Device, settings=None) -> PreTrainedModel:
    """The model at `source` with its linear layers stored in 4-bit NormalFloat (Dettmers et al. 2023,
    arXiv:2305.14314), or as `settings`, a BitsAndBytesConfig, say."""
    import bitsandbytes

    if adapter_base(source):
        raise InputError(f"{source} is an adapter, and 4-bit weights need a whole model: merge it into its base first")
    # Of several processes accelerate wants to see each one's own GPU named, and "cuda" alone is no device to all of it.
    place = "cpu" if device.kind == "cpu" else f"cuda:{torch.cuda.current_device()}"
    how = {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": device.autocast_dtype or torch.float32}
    settings = settings or transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **how)
    model = load_policy(source, device, quantization_config=settings, device_map={"": place})
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # On CPUs with AVX512-BF16 an evaluation pass would repack the weights into a form that cannot be trained.
            module.support_avx512bf16_for_cpu = False
    return model


def has_bitsandbytes() -> bool:
    """Whether 4-bit training is possible here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def load_reward_model(
    source: Source, device: Device | None = None, fresh_head: bool = False, base: str | None = None
) -> PreTrainedModel:
    """A sequence classifier with one output, dropout off; with `fresh_head` a language model gets a randomly
    initialized one. Raises InputError where there is no trained head otherwise, and where it has more outputs."""
    return load_classifier(source, device, base=base, fresh_head=fresh_head, num_labels=1)


def load_classifier(
    source: Source,
    device: Device | None,
    labels: Sequence[str] = (),
    base: str | None = None,
    fresh_head: bool = False,
    **head,
) -> PreTrainedModel:
    """A text classifier, dropout off; with `labels` a language model gets a randomly initialized head for them."""
    if labels:
        fresh_head, head = True, {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    tasks = ("SEQ_CLS", "CAUSAL_LM") if fresh_head else ("SEQ_CLS",)
    model, headless = _load(transformers.AutoModelForSequenceClassification, source, device, base, tasks, **head)
    if headless and not fresh_head:
        told = f"{source} has no trained head ({some(headless)} is not among its weights)"
        raise InputError(f"{told}, so its scores would be random; name a model that was saved as a sequence classifier")
    if model.config.pad_token_id is None:
        # Only transformers' own forward pass asks for it: here lengths say what is padding.
        model.config.pad_token_id = next(iter(eos_ids(model)), 0)
    without_dropout(model)
    return model.to(device.kind) if device else model


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with every dropout of it off, whatever it is called: layers, and rates in modules or configuration."""
    for owner in (model.config, *model.modules()):
        names = [name for name, value in vars(owner).items() if "drop" in name and type(value) in (int, float)]
        for name in [*names, "p"] if isinstance(owner, nn.modules.dropout._DropoutNd) else names:
            setattr(owner, name, 0.0)
    return model


def fp32_trainables(model: nn.Module) -> None:
    """Put trainables back to fp32: trl casts adapters of 4-bit models to bf16, which breaks fp16 and CPU training."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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
    """What the LoRA adapter at `source` was trained on, `base` where it is given; None where `source` is a model."""
    folder = model_folder(source, weights=False)
    whole = (folder / "config.json").is_file() and not any(folder.glob("adapter_model.*"))
    if whole or not (folder / ADAPTER_CONFIG).is_file():
        return None
    settings = read_json(folder / ADAPTER_CONFIG)
    named, revision = base or settings.get("base_model_name_or_path"), settings.get("revision")
    if not named or (is_folder(named) and not is_there(named)):
        trouble = f"belongs to the base {named}, which is not there" if named else "does not say of which model it is"
        raise InputError(f"the adapter {source} {trouble}; name its base with --set models.adapter_base=FOLDER_OR_ID")
    return named if base or not revision or is_folder(named) else f"{named}@{revision}"


def _load(kind, source: Source, device: Device | None, base: str | None, tasks: Sequence[str], **settings) -> tuple:
    """A model in fp32 and the weights of its head that nobody has trained; an adapter, of one of `tasks`, is merged
    into the fp32 weights of its base. InputError where a weight of the trunk is missing, misshapen, or has no place."""
    if below := adapter_base(source, base):
        task = read_json(model_folder(source) / ADAPTER_CONFIG).get("task_type")
        if task and task not in tasks:
            raise InputError(f"{source} is an adapter of another task ({task}); {' or '.join(tasks)} is wanted here")
        # The base of a classifier's adapter may well be a language model, and the adapter brings the head.
        model, headless = _load(kind, below, None, None, ("CAUSAL_LM", *tasks), **settings)
        return merge_adapter(model, source), set() if task == "SEQ_CLS" else headless
    config = load_config(source)
    if getattr(config, "quantization_config", None):
        raise InputError(f"{source} is stored quantized, and this series trains fp32 weights; name the full model")
    if getattr(config, "activation_function", "") == "gelu_new":
        settings["activation_function"] = "gelu_pytorch_tanh"
    if device == SHAPES_ONLY:
        settings["device_map"] = "meta"
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True, "weights_only": True}
    model, info = _from_pretrained(kind, source, dtype=torch.float32, **told, **settings)
    if misfits := _misfits(model, info):
        raise InputError(
            f"{source}: its weights do not fit its config.json ({'; '.join(misfits)}); save the model again with "
            "save_pretrained, without wrappers and with the config.json that belongs to it"
        )
    # What would keep it from being saved or used: a padding id that is none, and how somebody sampled from it.
    if not 0 <= (model.config.pad_token_id or 0) < model.config.vocab_size:
        model.config.pad_token_id = None
    if (sampling := getattr(model, "generation_config", None)) is not None:
        ids = {"bos_token_id": sampling.bos_token_id, "eos_token_id": sampling.eos_token_id}
        model.generation_config = transformers.GenerationConfig(**ids, pad_token_id=model.config.pad_token_id)
    return model, set(info["missing_keys"])


def _misfits(model: PreTrainedModel, info: dict) -> list[str]:
    """What is wrong with the weights of the trunk. What the file has for other heads is no misfit."""
    prefix, parts = f"{model.base_model_prefix}.", {part for part, _ in model.base_model.named_children()}

    def of_trunk(names: Collection[str]) -> set[str]:
        return {name for name in names if name.removeprefix(prefix).partition(".")[0] in parts}

    lost, extra = of_trunk(info["missing_keys"]), info["unexpected_keys"]
    # Where the trunk lacks weights, any other name may be theirs.
    extra = [name for name in (extra if lost else of_trunk(extra)) if not _COMPUTED.search(name)]
    wrong = [f"{name} has shape {[*there]} in the file, not {[*here]}" for name, there, here in info["mismatched_keys"]]
    found = [f"{what} {some(names)}" for what, names in (("missing", lost), ("not of this model", extra)) if names]
    return [*found, *sorted(wrong)[:1]]


def _from_pretrained(kind, source: Source, **settings):
    """What `kind` reads from the folder of `source`. Pickled weights are read as plain tensors, and no code runs."""
    of_weights = kind not in (transformers.AutoConfig, transformers.AutoTokenizer)
    folder, advice = model_folder(source, of_weights), "give a folder written by save_pretrained"
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise InputError(f"{source} is not a model folder: it has no config.json; {advice}")
    if of_weights and not any(next(folder.glob(kind), None) for kind in ("*.safetensors", "*.bin")):
        raise InputError(f"{source} has no weights (*.safetensors); {advice}")
    with reading(source):
        return kind.from_pretrained(folder, **settings)
