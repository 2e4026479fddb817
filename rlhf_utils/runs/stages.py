"""The notebooks of the series and the stages they make: what each is made from, what changes it, what it leaves; and
what can be known of the data and models that are named for them before anything is downloaded or trained."""

import hashlib
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rlhf_utils.data.sources import is_local
from rlhf_utils.platforms import names
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash, read_json
from rlhf_utils.platforms.names import EMBEDDED, PACKAGED, is_folder, is_there, local_path
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import LORA_PLACES, EvaluationSettings, Shares

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class StageKind:
    """`needs`: the stages it is made from; `settings`: those that change its result; `leaves`: files outside its
    checkpoint folder without which it is not complete."""

    needs: tuple[str, ...]
    settings: tuple[str, ...]
    leaves: tuple[str, ...] = ()


# All of the section but the settings of the demonstration.
_COMPARISON = tuple(f"evaluation.{name}" for name in EvaluationSettings.model_fields if name != "overoptimise")
# What they share with PPO.
_ALIKE = ("ppo", "generation", "evaluation.frontier_prompts")
_NEEDED_BY_PPO = ("sft", "reward_model", "judge_model", "judge", "data")
# Ready ones of these are measured on the run's held-out pairs and scaled by its SFT model.
MEASURED = ("reward_model", "judge")

STAGES = {
    "base": StageKind((), ("name", "scale", "seed", "dataset", "policy", "form", "data", "base")),
    "data": StageKind(("base",), ("data",)),
    "sft": StageKind(("base", "data"), ("sft", "generation", "tuned_policy")),
    "sft_qlora": StageKind(("base", "data"), ("sft", "qlora", "generation")),
    "reward_model": StageKind(
        ("sft", "data"), ("reward_model", "evaluation.reward_pairs"), ("evaluation/reward_model.json",)
    ),
    "judge_model": StageKind(("sft", "data", "reward_model"), ("reward_model", "evaluation.reward_pairs")),
    "judge": StageKind(("sft", "data", "reward_model"), ("evaluation.reward_pairs",)),
    "ppo": StageKind(_NEEDED_BY_PPO, ("reward", "ppo", "generation", "evaluation.frontier_prompts")),
    "evaluation": StageKind(
        ("base", "data", "sft", "sft_qlora", "reward_model", "judge_model", "judge", "ppo"),
        ("generation", *_COMPARISON),
        tuple(f"evaluation/{name}" for name in ("samples.csv", "frontier.json", "summary.json", "judge_pairs.jsonl")),
    ),
    "overoptimise": StageKind(
        _NEEDED_BY_PPO,
        ("reward_model", "ppo", "generation", "evaluation.prompts", "evaluation.overoptimise"),
        ("evaluation/overoptimise.json",),
    ),
    "dpo": StageKind((*_NEEDED_BY_PPO, "ppo"), ("dpo", *_ALIKE)),
    "rloo": StageKind((*_NEEDED_BY_PPO, "ppo"), ("rloo", *_ALIKE)),
    "grpo": StageKind((*_NEEDED_BY_PPO, "ppo"), ("grpo", *_ALIKE)),
    "best_of_n": StageKind((*_NEEDED_BY_PPO, "ppo"), ("best_of_n", *_ALIKE)),
    "alternatives": StageKind(
        ("evaluation", "dpo", "rloo", "grpo", "best_of_n"),
        ("generation", *_COMPARISON),
        ("evaluation/alternatives.json", "evaluation/alternatives.csv"),
    ),
}
# The stages of notebook 4.3, of which a recipe may leave some out.
_TO_COMPARE = ("dpo", "rloo", "grpo", "best_of_n")


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series, the stages it makes, those it only reads, and the form of recipes that it is for. An
    `optional` one is part of a run of the whole series only where the recipe asks for it."""

    path: str
    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    form: str | None = None
    optional: bool = False

    @property
    def name(self) -> str:
        """`02_01_preference_data`: the section's number and the notebook's own name."""
        folder, file = self.path.split("/")
        return f"{folder[:2]}_{file.removesuffix('.ipynb')}"


SERIES = (
    Notebook("01_supervised_finetuning/01_data_and_baseline.ipynb", makes=("base", "data")),
    Notebook("01_supervised_finetuning/02_full_finetuning.ipynb", makes=("sft",)),
    Notebook("01_supervised_finetuning/03_qlora.ipynb", makes=("sft_qlora",), reads=("sft",)),
    Notebook("02_reward_modeling/01_preference_data.ipynb", reads=("data",)),
    Notebook(
        "02_reward_modeling/02_reward_model.ipynb", makes=("reward_model", "judge_model", "judge"), form="dialogue"
    ),
    Notebook("02_reward_modeling/03_sentiment_classifier.ipynb", makes=("reward_model",), form="continuation"),
    Notebook("03_ppo_alignment/01_ppo_from_scratch.ipynb", reads=("sft", "reward_model", "data")),
    Notebook("03_ppo_alignment/02_ppo_training.ipynb", makes=("ppo",), reads=("sft", "reward_model", "data")),
    Notebook("04_evaluation/01_compare_models.ipynb", makes=("evaluation",)),
    Notebook("04_evaluation/02_reward_hacking.ipynb", makes=("overoptimise",), reads=("sft", "reward_model", "data")),
    Notebook(
        "04_evaluation/03_ppo_or_something_simpler.ipynb",
        makes=(*_TO_COMPARE, "alternatives"),
        reads=("sft", "reward_model", "ppo", "data"),
        optional=True,
    ),
    Notebook("04_evaluation/04_playground.ipynb", reads=("sft_qlora", "reward_model", "ppo")),
)


def making_code(stage: str, form: str) -> str:
    """The code cells that make `stage` in recipes of this form: those of its notebook, plots aside, up to the one that
    publishes it. Empty where the package makes it."""
    paths = [ROOT / n.path for n in SERIES if stage in n.makes and n.form in (None, form)]
    if not paths or not paths[0].is_file():
        return ""
    cells = read_json(paths[0])["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and not c["metadata"].get("tags")]
    last = next((i for i, cell in enumerate(code, 1) if re.search(rf'\bpublish\(\s*"{stage}"', cell)), 0)
    return "\n".join(code[:last])


class Plan:
    """The stages of one recipe: which there are, what each is made from, which are only fetched."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self._fingerprints: dict[str, str] = {}

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that have a meaning in this recipe, each after those it needs."""
        recipe, ready = self.recipe, self.recipe.models
        judged = recipe.dataset != EMBEDDED and recipe.form == "dialogue" and recipe.data.shares.judge
        kept = {stage: True for stage in STAGES} | {
            # The synthetic datasets have a gold judge; a ready PPO policy is compared without training a judge.
            "judge_model": judged and not ready.ppo,
            "judge": ready.judge,
            "overoptimise": recipe.evaluation.overoptimise and not ready.sft and not ready.ppo,
            # A tuned policy needs no adapter, and one beside a ready model of another base would not be comparable.
            "sft_qlora": ready.sft_qlora or not (recipe.tuned_policy or ready.sft),
            "base": recipe.policy != EMBEDDED or not ready.sft,
        }
        chosen = _TO_COMPARE if recipe.alternatives is None else recipe.alternatives
        # Their budget is that of the PPO trained here, and DPO learns from pairs.
        compared = () if ready.sft or ready.ppo else chosen
        kept |= {stage: stage in compared and (stage, recipe.form) != ("dpo", "continuation") for stage in _TO_COMPARE}
        kept["alternatives"] = any(kept[stage] for stage in _TO_COMPARE)
        # Without a base model the data take their tokenizer from the fine-tuned one, which is ready then.
        return tuple(sorted(filter(kept.get, STAGES), key=lambda stage: not kept["base"] and stage != "sft"))

    def needs(self, stage: str) -> tuple[str, ...]:
        """The stages that `stage` is made from; a ready policy is made from none."""
        if stage not in MEASURED and self.ready_model(stage):
            return ()
        if stage == "data" and "base" not in self.stages:
            return ("sft",)
        return tuple(need for need in STAGES[stage].needs if need in self.stages)

    @property
    def judging_stage(self) -> str | None:
        """The reward model that judges, in the place of gold: the one that was named before one trained here."""
        return next((stage for stage in ("judge", "judge_model") if stage in self.stages), None)

    def ready_model(self, stage: str) -> str | None:
        """The model that stands in for training in `stage`; None where it is trained."""
        return getattr(self.recipe.models, stage, None)

    @property
    def fetched(self) -> tuple[str, ...]:
        """The stages in which nothing is trained, each after those it needs: ready models, a base model published as
        the fine-tuned one, and, where models are ready, what they are measured with."""
        found = {stage for stage in self.stages if self.ready_model(stage)}
        if found:
            found |= {"data"} if self.recipe.policy == EMBEDDED else {"base", "data"}
        if self.recipe.tuned_policy:
            found.add("sft")
        if "sft" not in found:
            # A ready reward model is scaled by the responses of a fine-tuned policy that is still to be trained.
            found.discard("reward_model")
        if "reward_model" not in found or "judge_model" in self.stages:
            found.discard("judge")  # measured against a reward model, beside a judge, that are still to be trained
        return tuple(stage for stage in self.stages if stage in found)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data that this run reads."""
        unused = {"sft"} if self.recipe.tuned_policy or self.recipe.models.sft else set()
        unused |= set() if "judge_model" in self.stages else {"judge"}
        return tuple(name for name in Shares.model_fields if name not in unused)

    def fingerprint(self, stage: str) -> str:
        """Hash of all that `stage` depends on: settings, its notebook's code, local data and model, earlier stages."""
        if stage not in self._fingerprints:
            settings, ready = STAGES[stage].settings, self.ready_model(stage)
            first = "base" if "base" in self.stages else "data"
            if stage == first:
                settings = STAGES["base"].settings
            if ready and stage not in MEASURED:
                settings = ("name", "scale")
            settings = (*settings, "models.adapter_base", *([f"models.{stage}"] if ready else []))
            sources = [self.recipe.dataset, self.recipe.policy] if stage == first else []
            parts = [
                stage,
                self.recipe.section_hash(*settings),
                "" if ready else making_code(stage, self.recipe.form),
                *(self.fingerprint(name) for name in self.needs(stage)),
                *(content_hash(local_path(source)) for source in (*sources, ready) if source and is_there(source)),
            ]
            self._fingerprints[stage] = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return self._fingerprints[stage]


def check_names(plan: Plan, stages: Collection[str]) -> set[str]:
    """Look up all names on the hub that making `stages` reads, at once; returns the models. Imports nothing slow.

    InputError for the first that the hub does not have, or not for us, and where neither it nor the cache can be asked.
    """
    recipe = plan.recipe
    names.check_packaged(recipe.model_names)
    check_independent(recipe)
    models = {f"models.{stage}": plan.ready_model(stage) for stage in stages}
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
        elif name and name not in (EMBEDDED, *PACKAGED) and not local_path(name).is_dir():
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


def check_named_models(plan: Plan, on_hub: Collection[str] = ()) -> None:
    """Raise InputError for a folder, or one of the names `on_hub`, that is no model, is the wrong kind of model, has
    weights that do not fit it, or does not go with the others; and for LoRA modules that the policy does not have."""
    recipe, base, policies = plan.recipe, plan.recipe.models.adapter_base, []
    ppo = recipe.ppo.lora if recipe.ppo.method != "full" else None
    adapters = {"sft_qlora": recipe.qlora, "reward_model": recipe.reward_model.lora, "ppo": ppo}
    adapters = {s: lora for s, lora in adapters.items() if lora and s in plan.stages and not plan.ready_model(s)}
    named = {"policy": recipe.policy}
    stages = ("sft", "sft_qlora", "ppo", "reward_model", "judge")
    named |= {f"models.{stage}": plan.ready_model(stage) for stage in stages}
    named = {k: n for k, n in named.items() if n in on_hub or (n not in (None, EMBEDDED) and is_folder(n))}
    if not named and not any({*lora.modules} - {*LORA_PLACES} for lora in adapters.values()):
        return  # what follows imports torch, which takes seconds

    from transformers import GPT2Config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from rlhf_utils.models import loading
    from rlhf_utils.models.lora import lora_modules
    from rlhf_utils.platforms.runtime import quiet_libraries
    from rlhf_utils.rewards.reward_model import check_critic

    quiet_libraries()
    configs = {"policy": GPT2Config()} if recipe.policy == EMBEDDED else {}
    for key, source in named.items():
        config = configs[key] = loading.load_config(source, base)
        if key in ("models.reward_model", "models.judge"):
            load = loading.load_reward_model if recipe.form == "dialogue" else loading.load_classifier
            tokenizer, label = loading.load_classifier_tokenizer(source, base), recipe.reward_model.label
            if recipe.form == "continuation" and label not in config.id2label.values():
                there = ", ".join(map(str, config.id2label.values()))
                raise InputError(f"{key} {source} has no label {label!r}; set reward_model.label to one of {there}")
            if key == "models.reward_model" and recipe.ppo.critic == "separate" and not recipe.models.ppo and policies:
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
            raise InputError(f"{key} {source} embeds {config.vocab_size} tokens, its tokenizer has {len(tokenizer)}")
        if is_folder(source):
            load(source, loading.SHAPES_ONLY, base=base)
    if config := configs.get("models.sft", configs.get("policy")):
        for lora in adapters.values():
            lora_modules(lora, config)
        if "reward_model" in adapters:
            loading.check_head(config)


def check_independent(recipe: Recipe) -> None:
    """Raise InputError where the judge that the recipe names is its reward model, by the same name or in a copy."""
    rewarded, judge = recipe.models.reward_model, recipe.models.judge
    if not rewarded or not judge:
        return
    if is_there(rewarded) and is_there(judge):
        same = content_hash(local_path(rewarded)) == content_hash(local_path(judge))
    elif same := not is_folder(rewarded) and not is_folder(judge):
        one, other = names.wanted(rewarded), names.wanted(judge)
        same = (one.name, one.subfolder) == (other.name, other.subfolder)
    if same:
        raise InputError(f"models.judge {judge} is the reward model, so it is no independent judge; name another model")


def check_context(recipe: Recipe, policy: str) -> None:
    """Raise InputError where prompt and response can grow beyond what the model at `policy` has positions for."""
    from rlhf_utils.models.loading import load_config

    context = getattr(load_config(policy, recipe.models.adapter_base), "max_position_embeddings", None)
    if context and recipe.longest_text > context:
        told = f"data.max_prompt_tokens plus the longest answer need {recipe.longest_text} positions"
        raise InputError(f"{told} but the context of {policy} is {context}; lower the token limits")
