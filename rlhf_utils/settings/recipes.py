"""Recipes: which data, models and settings make one of the systems, at each scale.

One YAML file per recipe in `settings/recipes/` holds the common settings and, under `scales`, what each scale
changes.
`load_recipe` merges file, scale and overrides, in this order, and validates the result as a whole.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json
from rlhf_utils.settings.sections import (
    EMBEDDED,
    UNSET,
    BaseSettings,
    DataSettings,
    EvaluationSettings,
    GenerationSettings,
    PPOConfig,
    QloraSettings,
    ReadyModels,
    RewardModelSettings,
    RewardTerms,
    Section,
    TrainingSettings,
)
from rlhf_utils.settings.template import TEMPLATES, Template

# Tokens of Hugging Face, of OpenAI and the like, of GitHub.
_TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
SCALES = ("tiny", "t4", "full")


class Recipe(Section):
    """One system at one scale, ready to run. `dataset` and `policy` are `embedded`, a hub id or a local path.

    form: `dialogue` answers prompts and learns what is good from pairs of answers; `continuation` goes on with texts
      and is paid by a classifier of such texts
    tuned_policy: the policy writes texts of the dataset's kind already, so that there is nothing to fine-tune
    reading: what each notebook says of this recipe, by the notebook's name
    """

    name: str
    scale: str
    title: str
    description: str
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dataset: Annotated[str, Field(min_length=1)]
    policy: Annotated[str, Field(min_length=1)]
    form: Literal["dialogue", "continuation"] = "dialogue"
    tuned_policy: bool = False
    reading: dict[str, str] = {}
    models: ReadyModels = ReadyModels()
    data: DataSettings = DataSettings()
    base: BaseSettings = BaseSettings()
    generation: GenerationSettings = GenerationSettings()
    sft: TrainingSettings = TrainingSettings()
    qlora: QloraSettings = QloraSettings()
    reward_model: RewardModelSettings = RewardModelSettings()
    reward: RewardTerms = RewardTerms()
    ppo: PPOConfig = PPOConfig()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _possible_together(self):
        for name in ("dataset", "policy"):
            if getattr(self, name).strip().lower() in UNSET:
                raise ValueError(f"{name} cannot be unset; give a file or folder, a hub id, or {EMBEDDED}")
        for name in ("assistant", "overoptimise"):
            if self.form == "continuation" and getattr(self.evaluation, name) is not None:
                raise ValueError(f"evaluation.{name} is about answers to prompts; a recipe of continuations has none")
        if self.form == "continuation" and self.ppo.critic == "separate":
            raise ValueError("ppo.critic separate starts from a reward model of one output, and a classifier has more")
        if self.policy == EMBEDDED:
            # Learned position embeddings end at `context`: longer text cannot be represented, only cut off in silence.
            if self.longest_text > self.base.context:
                raise ValueError(
                    f"data.max_prompt_tokens plus the longest answer need {self.longest_text} positions but "
                    f"base.context is {self.base.context}; raise base.context or lower the token limits"
                )
        return self

    @classmethod
    def from_settings(cls, file: Path) -> Recipe:
        """The recipe whose settings `file` holds as JSON, alone or as the `settings` of a run.json."""
        if not file.is_file():
            raise InputError(f"{file} is not there; give a file of settings, such as a run.json")
        values = read_json(file)
        try:
            return cls.model_validate(values["settings"] if "settings" in values else values)
        except (TypeError, ValidationError) as error:
            reason = _first_problem(error) if isinstance(error, ValidationError) else "it is not a JSON object"
            raise InputError(f"{file}: {reason}") from None

    @property
    def template(self) -> Template:
        """The text around prompts and responses."""
        return TEMPLATES[self.form]

    @property
    def left_out(self) -> frozenset[str]:
        """The stages that have no meaning here.

        The embedded worlds have a gold judge and need no second reward model; a ready PPO policy is compared without
        training one. A tuned policy needs no adapter either.
        With a ready fine-tuned model nothing says that the embedded base is the one it came from, and an adapter would
        not be comparable.
        """
        out = set()
        if self.dataset == EMBEDDED or self.form == "continuation" or not self.data.shares.judge or self.models.ppo:
            out.add("judge_model")
        if self.evaluation.overoptimise is None or self.models.sft or self.models.ppo:
            out.add("overoptimise")
        if (self.tuned_policy or self.models.sft) and not self.models.sft_qlora:
            out.add("sft_qlora")
        if self.models.sft and self.policy == EMBEDDED:
            out.add("base")
        return frozenset(out)

    @property
    def model_names(self) -> list[str | None]:
        """Every model that the recipe names; None where it names none."""
        assistant = self.evaluation.assistant
        return [self.policy, *self.models.model_dump().values(), assistant.embedder if assistant else None]

    @property
    def longest_text(self) -> int:
        """Positions that the longest prompt with the longest answer and its EOS takes, in tokens."""
        answer = max(self.data.max_response_tokens, self.generation.max_new_tokens, self.ppo.max_new_tokens)
        prompt = self.data.max_prompt_tokens if self.form == "dialogue" else self.data.prompt_tokens[1]
        return prompt + answer + 1

    def section_hash(self, *names: str) -> str:
        """Hash of the named fields (`evaluation`, `evaluation.prompts`), to tell whether something made earlier was
        made with the same settings."""
        dumped = self.model_dump(mode="json")
        values = {name: reduce(lambda section, part: section[part], name.split("."), dumped) for name in names}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def hash(self) -> str:
        """Hash of every setting (first 16 hex digits of SHA-256)."""
        return self.section_hash(*type(self).model_fields)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("rlhf_utils") / "settings" / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str, scale: str = "tiny", overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The validated recipe `name` at `scale`.

    `overrides` maps dotted keys (`"sft.learning_rate"`) or nested dictionaries to values; strings are read as YAML
    scalars, so `"1e-5"` is a number. Raises InputError with one line that names the key, what was given and what is
    accepted.
    """
    names = recipe_names()
    if name not in names:
        raise InputError(f"unknown recipe {name!r}{_closest(name, names)}; there are: {', '.join(names)}")
    source = yaml.safe_load(
        (resources.files("rlhf_utils") / "settings" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    )
    scales = source.pop("scales")
    if scale not in scales:
        raise InputError(
            f"unknown scale {scale!r} for recipe {name}{_closest(scale, scales)}; there are: {', '.join(scales)}"
        )
    values = _merged(source, scales[scale] or {})
    if not isinstance(overrides or {}, Mapping):
        raise InputError(f'overrides is {overrides!r}, not a dictionary; for example {{"sft.epochs": 2}}')
    for key, value in (overrides or {}).items():
        _refuse_secrets(str(key), value)
        if key in ("name", "scale"):
            raise InputError(
                f"{key} cannot be overridden; choose it with --recipe or --scale (parameters `recipe`, `scale`)"
            )
        values = _merged(values, _nested(str(key), _plain(str(key), value)))
    try:
        return Recipe.model_validate({"name": name, "scale": scale, **values})
    except ValidationError as error:
        raise InputError(f"recipe {name}, scale {scale}: {_first_problem(error)}") from None


def _refuse_secrets(key: str, value: Any) -> None:
    """Settings are written into executed notebooks, run.json and model cards, so no token may come in through one."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_secrets(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _refuse_secrets(key, inner)
    elif isinstance(value, str) and _TOKEN.search(value):
        raise InputError(
            f"{key} holds what looks like an access token, and settings are written down; set HF_TOKEN in the "
            "environment (or Colab's or Kaggle's secrets) instead"
        )


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["sft.epochs=2", ...]` from the command line as an overrides dictionary."""
    overrides = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {assignment!r} is not key=value; for example --set sft.epochs=2")
        overrides[key.strip()] = value
    return overrides


def _plain(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return copy.deepcopy(value)
    if key.startswith("models.") or key.rsplit(".", 1)[-1] in ("dataset", "policy", "revision", "data_dir", "embedder"):
        return value  # a path or an id is never a YAML value: `on` or `1.0` may well be the name of a folder
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _nested(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merged(base: Mapping, change: Mapping) -> dict:
    result = dict(base)
    for key, value in change.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(problem["loc"][:-1])
        return f"unknown key {where!r}{_closest(str(problem['loc'][-1]), known)}; accepted here: {', '.join(known)}"
    if problem["type"] == "missing":
        return f"{where} is missing; set it with --set {where}=..."
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where + ': ' if where else ''}{message}"
    return f"{where} is {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(location: tuple) -> list[str]:
    section: Any = Recipe
    for part in location:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def _closest(word: str, known) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
