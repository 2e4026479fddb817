"""The models of a run side by side: one prompt, every model's answer, and what reward model and judge say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from rlhf_utils.data import PreparedData
from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.evaluation.compare import compared_models
from rlhf_utils.evaluation.judge import gold_judge
from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import load_policy, load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.report.plots.style import LABELS
from rlhf_utils.rewards import load_reward
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import GenerationSettings
from rlhf_utils.settings.template import NEXT_ASSISTANT, NEXT_HUMAN

Turns = Sequence[tuple[str, str]]


class Playground:
    """The finished policies of `run`, loaded once, and its reward model if it has one.

    Raises InputError where no policy is complete.
    """

    def __init__(self, run: Run):
        self.run, self.device = run, detect_device()
        self.names = [name for name in compared_models(run) if run.is_complete(name)]
        if not self.names:
            raise InputError(f"{run.root} has no finished model to ask; run `python -m rlhf_utils run` first")
        self.tokenizer = load_tokenizer(run.folder(self.names[0]))
        self.models = {name: load_policy(run.folder(name), self.device).eval() for name in self.names}
        self.reward = load_reward(run.folder("reward_model"), self.device) if run.is_complete("reward_model") else None
        self.judge = gold_judge(run.recipe)

    def ask(
        self,
        prompt: str,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
        turns: Mapping[str, Turns] | None = None,
    ) -> list[dict[str, Any]]:
        """Every model's answer to `prompt`, sampled with the same random numbers, decoded as in the evaluation unless
        told otherwise.

        turns: for each model what it was asked and answered before, in dialogues

        Returns a row per model: `model`, `response`, `ended`, `tokens`, `reward` (None without a reward model) and
        `gold` (0 to 10; None outside the embedded worlds). Raises InputError for an empty prompt, one too long for a
        model, and settings out of range.
        """
        if not prompt.strip():
            raise InputError("the prompt is empty; ask something")
        if not 0 <= seed < 2**63:
            raise InputError(f"seed {seed} is out of range; give a number from 0 to 2^63 - 1")
        settings, rows = self._settings(temperature, max_new_tokens), []
        for name, model in self.models.items():
            whole = self._conversation(prompt, (turns or {}).get(name, ()))
            text = self.run.recipe.template.format(whole)
            self._check_length(name, text, settings.max_new_tokens)
            (answer,) = answer_prompts(
                model, self.tokenizer, [text], settings, self.device, seed, self.run.recipe.template
            )
            rows.append(
                {
                    "model": LABELS[name],
                    "response": answer.text,
                    "ended": answer.ended,
                    "tokens": len(answer.tokens),
                    "reward": self.reward([whole], [answer.text]).item() if self.reward else None,
                    "gold": self.judge([whole], [answer.text])[0] if self.judge else None,
                }
            )
        return rows

    def examples(self, most: int = 6) -> list[str]:
        """Held-out prompts to begin with; none where the run has no data."""
        if not self.run.is_complete("data"):
            return []
        return list(PreparedData.load(self.run.folder("data")).first("evaluation", most)["prompt"])

    def _settings(self, temperature: float | None, max_new_tokens: int | None) -> GenerationSettings:
        given = {"temperature": temperature, "max_new_tokens": max_new_tokens}
        changed = {key: value for key, value in given.items() if value is not None}
        try:
            return GenerationSettings.model_validate({**self.run.recipe.generation.model_dump(), **changed})
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{problem['loc'][0]}: {problem['msg']}, not {problem['input']!r}") from None

    def _conversation(self, prompt: str, turns: Turns) -> str:
        if turns and self.run.recipe.form != "dialogue":
            raise InputError("this recipe continues texts, it holds no dialogues; ask without earlier turns")
        said = "".join(f"{asked}{NEXT_ASSISTANT} {answered}{NEXT_HUMAN} " for asked, answered in turns)
        return said + prompt

    def _check_length(self, name: str, text: str, new: int) -> None:
        limit = getattr(self.models[name].config, "max_position_embeddings", None)
        length = len(start_tokens(self.tokenizer, [text])[0])
        if limit and length + new > limit:
            raise InputError(
                f"{length} tokens with {new} to come are more than the {limit} that {LABELS[name]} reads; ask "
                "something shorter, or begin a new conversation"
            )
