"""What can be known of the models that a recipe names before anything is trained: those in folders of this machine."""

from __future__ import annotations

from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from rlhf_utils.errors import InputError
from rlhf_utils.models import adapter_base, check_weights, load_config, load_tokenizer
from rlhf_utils.names import is_folder
from rlhf_utils.runs import Run
from rlhf_utils.settings import EMBEDDED
from rlhf_utils.stages.base import check_context


def check_named_models(run: Run) -> None:
    """Raise InputError for a named folder that is no model, holds the wrong kind of model, or does not go with the
    others. Hub models are read when their stage is made."""
    recipe = run.recipe
    policies = {"policy": recipe.policy, **{f"models.{name}": run.ready_model(name) for name in _POLICIES}}
    for key, source in policies.items():
        if source and source != EMBEDDED and is_folder(source):
            _check_policy(run, key, source)
    known = recipe.policy
    if known != EMBEDDED and is_folder(known):
        vocabulary = load_tokenizer(known).get_vocab()
        for key, source in policies.items():
            if source and is_folder(source) and load_tokenizer(source).get_vocab() != vocabulary:
                raise InputError(f"{key} {source} has another vocabulary than {known}; all policies of a run share one")
    reward = run.ready_model("reward_model")
    if reward and is_folder(reward):
        _check_reward_model(run, reward)


_POLICIES = ("sft", "sft_qlora", "ppo")


def _check_policy(run: Run, key: str, source: str) -> None:
    config = load_config(source)
    kind = config.model_type
    # A masked language model would load as a causal one and look into the future.
    reads_ahead = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder or reads_ahead:
        raise InputError(f"{key} {source} is a {kind} model, which does not write text from left to right; name a GPT")
    check_weights(source)
    words = len(load_tokenizer(source))
    if words > config.vocab_size:
        raise InputError(
            f"{key} {source}: its tokenizer has {words} tokens and the model embeds {config.vocab_size}; save the two "
            "that belong together"
        )
    check_context(run.recipe, source)


def _check_reward_model(run: Run, source: str) -> None:
    config, label = load_config(source), run.recipe.reward_model.label
    check_weights(source)
    if run.recipe.form == "continuation" and label not in config.id2label.values():
        raise InputError(
            f"models.reward_model {source} has no label {label!r}; choose one of "
            f"{', '.join(map(str, config.id2label.values()))} with --set reward_model.label=..."
        )
    if run.recipe.form == "dialogue" and adapter_base(source) is None and config.num_labels != 1:
        raise InputError(
            f"models.reward_model {Path(source).name} has {config.num_labels} outputs; a reward model has one"
        )
