"""What can be known of the data and models that a recipe names before anything is downloaded or trained."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from rlhf_utils.data.sources import is_local
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.hub import DATASET, look_up, wanted
from rlhf_utils.platforms.names import EMBEDDED, PACKAGED, check_packaged, is_folder, local_path
from rlhf_utils.runs.run import Run


def check_names(run: Run, stages: Collection[str]) -> set[str]:
    """Look up every name on the hub that making `stages` reads, all at once; returns the models among them. Imports
    nothing that takes seconds.

    Raises InputError for the first that the hub does not have, or not for us, and where neither the hub nor the cache
    can be asked.
    """
    recipe = run.recipe
    check_packaged(recipe.model_names)
    models = {"policy": recipe.policy} if "base" in stages else {}
    models |= {f"models.{stage}": run.ready_model(stage) for stage in stages}
    if any(models.values()):
        models["models.adapter_base"] = recipe.models.adapter_base
    embedder = recipe.evaluation.assistant and recipe.evaluation.assistant.embedder
    if embedder and "evaluation" in stages:
        models["evaluation.assistant.embedder"] = embedder
    models = {key: name for key, name in models.items() if name and name != EMBEDDED}
    for key, name in models.items():
        if is_folder(name) and name not in PACKAGED and not local_path(name).is_dir():
            raise InputError(f"{key}: there is no folder {name}; name a folder, or an id on the Hugging Face hub")
    models = {key: name for key, name in models.items() if not is_folder(name)}
    names = {key: (name,) for key, name in models.items()}
    reads_data = "data" in stages or ("base" in stages and recipe.policy == EMBEDDED)
    if reads_data and recipe.dataset != EMBEDDED and not is_local(recipe.dataset):
        names["dataset"] = (recipe.dataset, DATASET, recipe.data.revision, recipe.data.data_dir)

    def trouble(key: str) -> InputError | None:
        try:
            look_up(wanted(*names[key]), base_is_known=recipe.models.adapter_base is not None)
        except InputError as error:
            return InputError(str(error) if str(error).startswith(key) else f"{key}: {error}")
        return None

    if names:
        with ThreadPoolExecutor(len(names)) as threads:
            for told in [*threads.map(trouble, names)]:
                if told:
                    raise told
    return set(models.values())


def check_named_models(run: Run, on_hub: Collection[str] = ()) -> None:
    """Raise InputError for a folder, or one of the names `on_hub`, that is no model, is the wrong kind of model, has
    weights that do not fit it, or does not go with the others; and for LoRA modules that the policy does not have."""
    from transformers import GPT2Config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from rlhf_utils.models import loading
    from rlhf_utils.models.lora import lora_modules
    from rlhf_utils.platforms.runtime import quiet_libraries
    from rlhf_utils.rewards.reward_model import check_critic
    from rlhf_utils.runs.base import check_context

    def readable(source: str | None) -> bool:
        return bool(source) and source != EMBEDDED and (is_folder(source) or source in on_hub)

    quiet_libraries()
    recipe, base, tokenizers = run.recipe, run.recipe.models.adapter_base, {}
    policies = {f"models.{stage}": run.ready_model(stage) for stage in ("sft", "sft_qlora", "ppo")}
    for key, source in {"policy": recipe.policy, **policies}.items():
        if not readable(source):
            continue
        config = loading.load_config(source, base)
        # A masked language model would load as a causal one and look into the future.
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or loading.reads_ahead(config):
            kind = f"a {config.model_type} model, which does not write text from left to right"
            raise InputError(f"{key} {source} is {kind}; name a causal LM")
        tokenizers[source] = loading.load_tokenizer(source, base)
        _check_size(f"{key} {source}", tokenizers[source], config)
        check_context(recipe, source)
        if is_folder(source):
            loading.load_policy(source, loading.SHAPES_ONLY, base=base)
        first = next(iter(tokenizers))
        if tokenizers[source].get_vocab() != tokenizers[first].get_vocab():
            raise InputError(f"{key} {source} has another vocabulary than {first}; all policies of a run share one")
    if readable(reward := run.ready_model("reward_model")):
        _check_reward_model(run, reward)
        if recipe.ppo.critic == "separate" and not recipe.models.ppo and tokenizers:
            check_critic(reward, next(iter(tokenizers.values())), base)
    source = recipe.models.sft or recipe.policy
    if source == EMBEDDED or readable(source):
        config = GPT2Config() if source == EMBEDDED else loading.load_config(source, base)
        ppo = recipe.ppo.lora if recipe.ppo.method != "full" else None
        for stage, lora in (("sft_qlora", recipe.qlora), ("reward_model", recipe.reward_model.lora), ("ppo", ppo)):
            if lora and stage in run.stages and not run.ready_model(stage):
                lora_modules(lora, config)


def _check_reward_model(run: Run, source: str) -> None:
    from rlhf_utils.models import loading

    recipe, base, dialogue = run.recipe, run.recipe.models.adapter_base, run.recipe.form == "dialogue"
    name, config = f"models.reward_model {source}", loading.load_config(source, base)
    kinds = config.architectures if loading.adapter_base(source, base) is None else None
    labels, wanted = [*config.id2label.values()], recipe.reward_model.label
    there = ", ".join(map(str, labels))
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        trouble = f"is a {kinds[0]}, which has no trained head for scores"
        raise InputError(f"{name} {trouble}; name a model that was saved as a sequence classifier")
    if kinds and dialogue and config.num_labels != 1:
        raise InputError(f"{name} has {config.num_labels} outputs ({there}); the reward model of a dialogue has one")
    if not dialogue and wanted not in labels:
        raise InputError(f"{name} has no label {wanted!r}; choose one of {there} with --set reward_model.label=...")
    _check_size(name, loading.load_classifier_tokenizer(source, base), config)
    if is_folder(source):
        load = loading.load_reward_model if dialogue else loading.load_classifier
        load(source, loading.SHAPES_ONLY, base=base)


def _check_size(name: str, tokenizer, config) -> None:
    if (tokens := len(tokenizer)) > (embeds := config.vocab_size):
        trouble = f"its tokenizer has {tokens} tokens and the model embeds {embeds}"
        raise InputError(f"{name}: {trouble}; save the two that belong together")
