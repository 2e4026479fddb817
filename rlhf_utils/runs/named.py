"""What can be known of the models that a recipe names before anything is trained: folders of this machine, and what the
hub says of a model besides its weights."""

from __future__ import annotations

from collections.abc import Collection

from transformers import GPT2Config, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_utils.models.loading import (
    SHAPES_ONLY,
    adapter_base,
    check_weights,
    load_classifier,
    load_classifier_tokenizer,
    load_config,
    load_policy,
    load_reward_model,
    load_tokenizer,
    reads_ahead,
)
from rlhf_utils.models.lora import lora_modules
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import is_folder
from rlhf_utils.platforms.runtime import quiet_libraries
from rlhf_utils.rewards.functions import check_critic
from rlhf_utils.runs.base import check_context
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import EMBEDDED

_POLICIES = ("sft", "sft_qlora", "ppo")


def check_named_models(run: Run, on_hub: Collection[str] = ()) -> None:
    """Raise InputError for a folder, or one of the names `on_hub`, that is no model, is the wrong kind of model, has
    weights that do not fit it, or does not go with the others; and for LoRA modules that the policy does not have."""
    quiet_libraries()
    recipe = run.recipe
    named = {"policy": recipe.policy, **{f"models.{name}": run.ready_model(name) for name in _POLICIES}}
    policies = {key: source for key, source in named.items() if _readable(source, on_hub)}
    for key, source in policies.items():
        _check_policy(run, key, source)
    vocabularies = {source: load_tokenizer(source, run.adapter_base).get_vocab() for source in policies.values()}
    for key, source in policies.items():
        first, vocabulary = next(iter(vocabularies.items()))
        if vocabularies[source] != vocabulary:
            raise InputError(f"{key} {source} has another vocabulary than {first}; all policies of a run share one")
    reward = run.ready_model("reward_model")
    if _readable(reward, on_hub):
        _check_reward_model(run, reward)
        if recipe.ppo.critic == "separate" and not recipe.models.ppo and policies:
            tokenizer = load_tokenizer(next(iter(policies.values())), run.adapter_base)
            check_critic(reward, tokenizer, run.adapter_base)
    source = recipe.models.sft or recipe.policy
    if source == EMBEDDED or _readable(source, on_hub):
        _check_lora(run, source)


def _readable(source: str | None, on_hub: Collection[str]) -> bool:
    return bool(source) and source != EMBEDDED and (is_folder(source) or source in on_hub)


def _check_policy(run: Run, key: str, source: str) -> None:
    config = load_config(source, run.adapter_base)
    kind = config.model_type
    # A masked language model would load as a causal one and look into the future.
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or reads_ahead(config):
        raise InputError(
            f"{key} {source} is a {kind} model, which does not write text from left to right; name a causal LM"
        )
    if is_folder(source):
        check_weights(source)
    words = len(load_tokenizer(source, run.adapter_base))
    if words > config.vocab_size:
        raise InputError(
            f"{key} {source}: its tokenizer has {words} tokens and the model embeds {config.vocab_size}; save the two "
            "that belong together"
        )
    check_context(run.recipe, source)
    if is_folder(source):
        load_policy(source, SHAPES_ONLY, base=run.adapter_base)


def _check_reward_model(run: Run, source: str) -> None:
    base, label, form = run.adapter_base, run.recipe.reward_model.label, run.recipe.form
    config = load_config(source, base)
    if is_folder(source):
        check_weights(source)
    if adapter_base(source, base) is None:
        _check_head(run, source, config)
    if form == "continuation" and label not in config.id2label.values():
        raise InputError(
            f"models.reward_model {source} has no label {label!r}; choose one of "
            f"{', '.join(map(str, config.id2label.values()))} with --set reward_model.label=..."
        )
    words = len(load_classifier_tokenizer(source, base))
    if words > config.vocab_size:
        raise InputError(
            f"models.reward_model {source}: its tokenizer has {words} tokens and the model embeds {config.vocab_size}; "
            "save the two that belong together"
        )
    if is_folder(source):
        (load_reward_model if form == "dialogue" else load_classifier)(source, SHAPES_ONLY, base=base)


def _check_head(run: Run, source: str, config: PretrainedConfig) -> None:
    kinds = config.architectures or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise InputError(
            f"models.reward_model {source} is a {kinds[0]}, which has no trained head for scores; name a model that "
            "was saved as a sequence classifier"
        )
    if kinds and run.recipe.form == "dialogue" and config.num_labels != 1:
        names = ", ".join(map(str, config.id2label.values()))
        raise InputError(
            f"models.reward_model {source} has {config.num_labels} outputs ({names}); the reward model of a dialogue "
            "has one"
        )


def _check_lora(run: Run, source: str) -> None:
    recipe = run.recipe
    config = GPT2Config() if source == EMBEDDED else load_config(source, run.adapter_base)
    settings = {
        "sft_qlora": recipe.qlora,
        "reward_model": recipe.reward_model.lora,
        "ppo": recipe.ppo.lora if recipe.ppo.method != "full" else None,
    }
    for stage, lora in settings.items():
        if lora and stage in run.stages and not run.ready_model(stage):
            lora_modules(lora, config)
