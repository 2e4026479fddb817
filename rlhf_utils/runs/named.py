"""What can be known of the data and models that a recipe names before anything is downloaded or trained."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from rlhf_utils.data.sources import is_local
from rlhf_utils.platforms import names
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import EMBEDDED, PACKAGED, is_folder
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import LORA_PLACES


def check_names(run: Run, stages: Collection[str]) -> set[str]:
    """Look up every name on the hub that making `stages` reads, all at once; returns the models among them. Imports
    nothing that takes seconds.

    Raises InputError for the first that the hub does not have, or not for us, and where neither the hub nor the cache
    can be asked.
    """
    recipe = run.recipe
    names.check_packaged(recipe.model_names)
    models = {f"models.{stage}": run.ready_model(stage) for stage in stages}
    if "base" in stages:
        models["policy"] = recipe.policy
    if any(models.values()):
        models["models.adapter_base"] = recipe.models.adapter_base
    embedder = recipe.evaluation.assistant and recipe.evaluation.assistant.embedder
    if embedder and "evaluation" in stages:
        models["evaluation.assistant.embedder"] = embedder
    asked = {}
    for key, name in models.items():
        if name and name != EMBEDDED and not is_folder(name):
            asked[key] = (name,)
        elif name and name not in (EMBEDDED, *PACKAGED) and not names.local_path(name).is_dir():
            raise InputError(f"{key}: there is no folder {name}; name a folder, or an id on the Hugging Face hub")
    on_hub = {name for (name,) in asked.values()}
    reads_data = "data" in stages or ("base" in stages and recipe.policy == EMBEDDED)
    if reads_data and recipe.dataset != EMBEDDED and not is_local(recipe.dataset):
        asked["dataset"] = (recipe.dataset, names.DATASET, recipe.data.revision, recipe.data.data_dir)

    def ask(key: str) -> None:
        try:
            names.look_up(names.wanted(*asked[key]), base_is_known=recipe.models.adapter_base is not None)
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(key) else f"{key}: {error}") from None

    with ThreadPoolExecutor() as threads:
        list(threads.map(ask, asked))
    return on_hub


def check_named_models(run: Run, on_hub: Collection[str] = ()) -> None:
    """Raise InputError for a folder, or one of the names `on_hub`, that is no model, is the wrong kind of model, has
    weights that do not fit it, or does not go with the others; and for LoRA modules that the policy does not have."""
    recipe, base, policies = run.recipe, run.recipe.models.adapter_base, []
    ppo = recipe.ppo.lora if recipe.ppo.method != "full" else None
    adapters = {"sft_qlora": recipe.qlora, "reward_model": recipe.reward_model.lora, "ppo": ppo}
    adapters = {s: lora for s, lora in adapters.items() if lora and s in run.stages and not run.ready_model(s)}
    named = {"policy": recipe.policy}
    named |= {f"models.{stage}": run.ready_model(stage) for stage in ("sft", "sft_qlora", "ppo", "reward_model")}
    named = {k: n for k, n in named.items() if n in on_hub or (n not in (None, EMBEDDED) and is_folder(n))}
    if not named and not any({*lora.modules} - {*LORA_PLACES} for lora in adapters.values()):
        return  # what follows imports torch, which takes seconds

    from transformers import GPT2Config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from rlhf_utils.models import loading
    from rlhf_utils.models.lora import lora_modules
    from rlhf_utils.platforms.runtime import quiet_libraries
    from rlhf_utils.rewards.reward_model import check_critic
    from rlhf_utils.runs.base import check_context

    quiet_libraries()
    configs = {"policy": GPT2Config()} if recipe.policy == EMBEDDED else {}
    for key, source in named.items():
        config = configs[key] = loading.load_config(source, base)
        if key == "models.reward_model":
            load = loading.load_reward_model if recipe.form == "dialogue" else loading.load_classifier
            tokenizer, label = loading.load_classifier_tokenizer(source, base), recipe.reward_model.label
            if recipe.form == "continuation" and label not in config.id2label.values():
                there = ", ".join(map(str, config.id2label.values()))
                raise InputError(f"{key} {source} has no label {label!r}; set reward_model.label to one of {there}")
            if recipe.ppo.critic == "separate" and not recipe.models.ppo and policies:
                check_critic(source, policies[0], base)
        else:
            load, tokenizer = loading.load_policy, loading.load_tokenizer(source, base)
            # A masked language model would load as a causal one and look into the future.
            if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or loading.reads_ahead(config):
                raise InputError(f"{key} {source} is a {config.model_type} model; name a causal language model")
            check_context(recipe, source)
            policies.append(tokenizer)
            if tokenizer.get_vocab() != policies[0].get_vocab():
                raise InputError(f"{key} {source} has another vocabulary; all policies of a run share one")
        if len(tokenizer) > config.vocab_size:
            raise InputError(
                f"{key} {source} embeds {config.vocab_size} tokens, and its tokenizer has {len(tokenizer)}"
            )
        if is_folder(source):
            load(source, loading.SHAPES_ONLY, base=base)
    if config := configs.get("models.sft", configs.get("policy")):
        for lora in adapters.values():
            lora_modules(lora, config)
