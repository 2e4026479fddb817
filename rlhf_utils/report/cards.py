"""Publishing a run's model on the Hugging Face hub, with a card made of the run's own numbers."""

import html
import json
import shlex
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_utils.evaluation import LABELS
from rlhf_utils.models.loading import copy_model
from rlhf_utils.platforms.bootstrap import written_address
from rlhf_utils.platforms.errors import InputError, visible
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import EMBEDDED, PACKAGED, is_there, known_as
from rlhf_utils.platforms.runtime import hub_token
from rlhf_utils.report.findings import COLUMNS, judge_name, model_table, sentences, versus
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.settings.sections import flat

ROLES = {**LABELS, "reward_model": "reward model"}
"""The stages that leave a model."""


def model_card(run: Run, stage: str, repository: str = "OWNER/NAME") -> str:
    """README.md of the model of `stage` in `repository`: what it is, the run's figures with their intervals, how to use
    and reproduce it. Raises InputError for a stage that leaves no model, and for one that is not complete."""
    from huggingface_hub import ModelCard, ModelCardData

    if stage not in ROLES:
        raise InputError(f"stage {stage!r} leaves no model; choose one of {', '.join(ROLES)}")
    run.require(stage)
    # A path of this machine means nothing elsewhere, and where the hub wants a name it takes no revision.
    named = run.recipe.policy, run.recipe.dataset
    policy, data = (None if name == EMBEDDED or is_there(name) else name for name in named)
    summary = read_json(run.evaluation / "summary.json") if run.is_complete("evaluation") else {"models": {}}
    about = {
        "license": PACKAGED[policy].license if policy in PACKAGED else "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if stage == "reward_model" else "text-generation",
        "base_model": known_as(policy) if policy else None,
        "datasets": [known_as(data)] if data else None,
        "tags": ["rlhf", stage],
        "model_name": f"{run.recipe.title}: {ROLES[stage]}",
    }
    card_data = ModelCardData(**about, eval_results=_results(about, _figures(summary, stage)) or None)
    values = {"stage": stage, "role": ROLES[stage], "repository": repository, "policy": policy, "data": data}
    values |= {"made": read_json(run.folder(stage) / "stage.json")["made"], "address": written_address()}
    values |= {"recipe": run.recipe, "record": run.record(), "changes": _changes(run), "summary": summary}
    values |= {"rows": model_table(summary), "headlines": [*map(_markdown, sentences(summary))]}
    template = (Path(__file__).parent / "templates" / "model_card.md.j2").read_text(encoding="utf-8")
    return str(ModelCard.from_template(card_data, template_str=template, **values))


def _figures(summary: dict, stage: str) -> Iterator[tuple[str, str, float, list[float] | None]]:
    """What was measured of the model of `stage`: key, title, value, 95% CI."""
    figures = (summary if stage == "reward_model" else summary["models"]).get(stage) or {}
    for key, (title, _) in {"accuracy": ("accuracy on held-out pairs", 0), **COLUMNS}.items():
        if figures.get(key) is not None:
            yield key, title, figures[key], figures.get(f"{key}_ci95")
    for pair, wins in summary.get("win_rate", {}).items() if stage == "ppo" else ():
        told = f"win rate, {versus(pair)}, judged by {judge_name(summary, wins['judged_by'])}"
        yield f"win_rate_{pair}", told, wins["rate"], wins["ci95"]
        if alike := wins.get("length_controlled"):
            yield f"length_controlled_win_rate_{pair}", f"length-controlled {told}", alike["rate"], alike["ci95"]


def _results(about: dict, figures: Iterable[tuple]) -> list:
    """The figures of a model as the hub keeps them beside it, each with its 95% CI."""
    from huggingface_hub import EvalResult

    [dataset] = about["datasets"] or [None]
    where = {"dataset_name": dataset or "synthetic dataset of the series, or a local file", "dataset_split": "test"}
    where |= {"dataset_type": dataset or "synthetic", "task_type": about["pipeline_tag"]}
    results = []
    for key, title, value, ends in figures:
        value = {"metric_value": round(value, 4), "metric_args": {"ci95": ends} if ends else None}
        results.append(EvalResult(**where, metric_type=key, metric_name=title, **value))
    return results


def push_to_hub(run: Run, stage: str, repository: str, private: bool = False) -> str:
    """Upload the model of `stage` with its card to `repository` (`owner/name`, or `name` for one of your own), which is
    made where there is none; returns its address.

    The token is `HF_TOKEN`, or the one of Colab's or Kaggle's secrets. Raises InputError where there is none, where the
    hub refuses, and where `private` is asked for and the repository is there for everybody.
    """
    from huggingface_hub import HfApi

    from rlhf_utils.platforms.names import first_line

    if not repository.strip():
        raise InputError("the name of the repository is empty; give owner/name")
    token = hub_token()
    if token is None:
        raise InputError("pushing needs a token of the Hugging Face hub with the right to write; set HF_TOKEN")
    model_card(run, stage)
    api = HfApi(token=token)
    try:
        name = repository if "/" in repository else f"{api.whoami()['name']}/{repository}"
        if not api.repo_exists(name):
            api.create_repo(name, private=private)
        elif private and not api.model_info(name).private:
            raise InputError(f"{name} is there already, and public; make it private on its page, or name another")
        with tempfile.TemporaryDirectory() as folder:
            copy_model(run.folder(stage), Path(folder))
            (Path(folder) / "README.md").write_text(model_card(run, stage, name), encoding="utf-8")
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{stage} of {run.root.name}")
    except InputError:
        raise
    except Exception as error:  # of the hub's library and of the HTTP library under it, which has changed
        advice = "check the name, the network, and that your token may write there and has not expired"
        raise InputError(f"cannot push to {repository}: {first_line(error)}; {advice}") from None
    return f"{api.endpoint}/{name}"


def _changes(run: Run) -> str:
    """The settings that differ from the recipe's, as arguments of the command; paths are left out."""
    recipes = run.recipe, load_recipe(run.recipe.name, run.recipe.scale)
    found, usual = (flat(recipe.model_dump(mode="json")) for recipe in recipes)
    changed = {key: value for key, value in found.items() if usual.get(key) != value}
    plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in changed.items()}
    return "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in plain.items() if not is_there(value))


def _markdown(text: str) -> str:
    """A sentence, which may quote a phrase of a model, as Markdown that shows just that."""
    return html.escape(visible(text), quote=False).replace("`", "\\`").replace("](", "]\\(")
