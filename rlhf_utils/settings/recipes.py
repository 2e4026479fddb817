"""Recipes: one YAML file each, with what every scale changes under `scales`; `load_recipe` merges and validates."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, model_validator

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.settings import sections
from rlhf_utils.settings.sections import Alternative, Name, Section, Seed
from rlhf_utils.settings.template import TEMPLATES, Template

SCALES = ("tiny", "small", "t4", "full")
FOLDER = Path(__file__).with_name("recipes")
# Of Hugging Face, OpenAI and GitHub.
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
# Never read as YAML: `on` or `1.0` may well be the name of a folder.
_TEXTS = re.compile(r"models\..*|(.*\.)?(dataset|policy|revision|data_dir|embedder|ending)")


class Recipe(Section):
    """One system at one scale, ready to run. `dataset` and `policy` are `embedded`, a hub id, or a local path.

    form: `dialogue` responds to prompts and learns from pairs of responses; `continuation` continues texts, and its
        reward is a classifier of such texts
    tuned_policy: the policy writes texts of the dataset's kind already, so there is nothing to fine-tune
    reading: what each notebook says of this recipe, by the notebook's name
    alternatives: what notebook 4.3 compares PPO with. null: all four, and a run of the whole series leaves 4.3 out
    """

    name: str
    scale: str
    title: str
    description: str
    seed: Seed = 0
    dataset: Name
    policy: Name
    form: Literal["dialogue", "continuation"] = "dialogue"
    tuned_policy: bool = False
    reading: dict[str, str] = {}
    needs: sections.Needs = sections.Needs()
    models: sections.ReadyModels = sections.ReadyModels()
    data: sections.DataSettings = sections.DataSettings()
    base: sections.BaseSettings = sections.BaseSettings()
    generation: sections.GenerationSettings = sections.GenerationSettings()
    sft: sections.TrainingSettings = sections.TrainingSettings()
    qlora: sections.QloraSettings = sections.QloraSettings()
    reward_model: sections.RewardModelSettings = sections.RewardModelSettings()
    reward: sections.RewardTerms = sections.RewardTerms()
    ppo: sections.PPOConfig = sections.PPOConfig()
    evaluation: sections.EvaluationSettings = sections.EvaluationSettings()
    alternatives: tuple[Alternative, ...] | None = None
    dpo: sections.DPOSettings = sections.DPOSettings()
    rloo: sections.GroupSettings = sections.GroupSettings()
    grpo: sections.GroupSettings = sections.GroupSettings()
    best_of_n: sections.BestOfNSettings = sections.BestOfNSettings()

    @model_validator(mode="after")
    def _possible_together(self):
        measured = self.evaluation
        of_dialogues = (measured.assistant, measured.overoptimise, self.models.judge, self.ppo.critic == "separate")
        if self.form == "continuation" and any(of_dialogues):
            told = "evaluation.assistant, evaluation.overoptimise, models.judge and ppo.critic separate"
            raise ValueError(f"{told} are for a dialogue; unset them")
        if self.form == "dialogue" and (self.reward_model.ending or self.reward_model.words):
            raise ValueError("reward_model.ending and reward_model.words are for labeled texts; unset them")
        if self.reward_model.words and not self.reward_model.ending:
            raise ValueError("reward_model.words are said after reward_model.ending; set both")
        # Learned position embeddings end at `context`: longer text cannot be represented, only cut off silently.
        if self.policy == EMBEDDED and self.longest_text > self.base.context:
            told = f"data.max_prompt_tokens plus the longest answer need {self.longest_text} positions but base.context"
            raise ValueError(f"{told} is {self.base.context}; raise base.context or lower the token limits")
        return self

    @classmethod
    def from_settings(cls, file: Path) -> "Recipe":
        """The recipe whose settings `file` holds as JSON, alone or as the `settings` of a run.json."""
        if not file.is_file():
            raise InputError(f"{file} is not there; name a run's folder (outputs/instruct-tiny), or its run.json")
        values = read_json(file)
        return _validated(values.get("settings", values) if isinstance(values, dict) else values, str(file))

    @property
    def template(self) -> Template:
        """The text around prompts and responses."""
        return TEMPLATES[self.form]

    @property
    def model_names(self) -> list[str | None]:
        """Every model that the recipe names; None where it names none."""
        assistant = self.evaluation.assistant
        return [self.policy, *self.models.model_dump().values(), assistant.embedder if assistant else None]

    @property
    def longest_text(self) -> int:
        """Positions that the longest prompt with the longest response and its EOS takes, in tokens."""
        response = max(self.data.max_response_tokens, self.generation.max_new_tokens, self.ppo.max_new_tokens)
        prompt = self.data.max_prompt_tokens if self.form == "dialogue" else max(self.data.prompt_tokens)
        return prompt + response + 1

    def section_hash(self, *names: str) -> str:
        """Hash of the named fields (`evaluation`, `evaluation.prompts`): whether two results had the same settings."""
        dumped = self.model_dump(mode="json")
        values = {name: reduce(lambda section, part: section[part], name.split("."), dumped) for name in names}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def hash(self) -> str:
        """Hash of every setting (first 16 hex digits of SHA-256)."""
        return self.section_hash(*type(self).model_fields)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, scale: str = "tiny", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The validated recipe `name` at `scale`: the file, then the scale, then `overrides`.

    `overrides` maps dotted keys (`"sft.learning_rate"`) to values or nested dictionaries; strings are read as YAML, so
    `"1e-5"` is a number. Raises InputError with one line: the key, what was given, what is accepted.
    """
    if name not in recipe_names():
        raise InputError(f"unknown recipe {name!r}; there are: {', '.join(recipe_names())}")
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    if scale not in (known := values.pop("scales")):
        raise InputError(f"unknown scale {scale!r} for recipe {name}; there are: {', '.join(known)}")
    if not isinstance(overrides or {}, Mapping):
        raise InputError(f'overrides is {overrides!r}, not a dictionary; for example {{"sft.epochs": 2}}')
    values = _merged(values, known[scale] or {})
    for key, value in (overrides or {}).items():
        if _TOKEN.search(str(value)):
            raise InputError(f"{key} holds what looks like an access token; set HF_TOKEN in the environment instead")
        if key in ("name", "scale"):
            raise InputError(f"{key} cannot be overridden; choose another recipe or scale")
        if isinstance(value, str) and not _TEXTS.fullmatch(str(key)):
            with suppress(yaml.YAMLError):
                value = yaml.safe_load(value)
        values = _merged(values, reduce(lambda inner, part: {part: inner}, str(key).split(".")[::-1], value))
    return _validated({"name": name, "scale": scale, **values}, f"recipe {name}, scale {scale}")


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["sft.epochs=2", ...]` from the command line as an overrides dictionary."""
    overrides = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {assignment!r} is not key=value; for example --set sft.epochs=2")
        overrides[key.strip()] = value
    return overrides


def _merged(base: Mapping, change: Mapping) -> dict:
    both = [key for key, value in change.items() if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)]
    return {**base, **change, **{key: _merged(base[key], change[key]) for key in both}}


def _validated(values: Any, where: str) -> Recipe:
    """The recipe with these settings; InputError names the first problem in one line."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
    path, given = ".".join(map(str, problem["loc"])), problem["input"]
    named = [path] if isinstance(given, dict) else [f"{path} is {given!r}".strip()]
    raise InputError(": ".join(filter(None, [where, *named, problem["msg"].removeprefix("Value error, ")])))
