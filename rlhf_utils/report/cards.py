"""Publishing a run's model on the Hugging Face hub, with a card made of the run's own numbers."""

import html
import json
import shlex
import tempfile
from importlib import resources
from pathlib import Path

from rlhf_utils.evaluation import LABELS
from rlhf_utils.models.loading import copy_model
from rlhf_utils.platforms.bootstrap import written_address
from rlhf_utils.platforms.errors import InputError, visible
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import EMBEDDED, PACKAGED, is_there, known_as
from rlhf_utils.platforms.runtime import hub_token
from rlhf_utils.report.findings import COLUMNS, model_table, sentences
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
    recipe = run.recipe
    # A path of this machine means nothing elsewhere, and where the hub wants a name it takes no revision.
    policy, dataset = (None if name == EMBEDDED or is_there(name) else name for name in (recipe.policy, recipe.dataset))
    summary = read_json(run.evaluation / "summary.json") if run.is_complete("evaluation") else {}
    task = "text-classification" if stage == "reward_model" else "text-generation"
    known = dataset and known_as(dataset)
    about = ModelCardData(
        license=PACKAGED[policy].license if policy in PACKAGED else "mit",
        library_name="transformers",
        pipeline_tag=task,
        base_model=known_as(policy) if policy else None,
        datasets=[known] if known else None,
        tags=["rlhf", stage],
        model_name=f"{recipe.title}: {ROLES[stage]}",
        eval_results=_results(summary, stage, task, known) or None,
    )
    return str(
        ModelCard.from_template(
            about,
            template_str=(resources.files(__package__) / "templates" / "model_card.md.j2").read_text(encoding="utf-8"),
            stage=stage,
            repository=repository,
            role=ROLES[stage],
            recipe=recipe,
            policy=policy,
            data=dataset,
            address=written_address(),
            summary=summary,
            rows=model_table(summary),
            headlines=[_markdown(line) for line in sentences(summary)],
            record=run.record(),
            made=read_json(run.folder(stage) / "stage.json")["made"],
            changes=_changes(run),
        )
    )


def _results(summary: dict, stage: str, task: str, dataset: str | None) -> list:
    """The figures of the model of `stage` as the hub keeps them beside a model, each with its 95% CI."""
    from huggingface_hub import EvalResult

    figures = summary.get("reward_model") if stage == "reward_model" else summary.get("models", {}).get(stage)
    titles = {"accuracy": "accuracy on held-out pairs"} | {key: title for key, title, _ in COLUMNS}
    where = {"task_type": task, "dataset_type": dataset or "synthetic", "dataset_split": "test"}
    where["dataset_name"] = dataset or "synthetic dataset of the series, or a local file"
    results = []
    for key, title in titles.items():
        if (value := (figures or {}).get(key)) is not None:
            ends = figures.get(f"{key}_ci95")
            measured = {"metric_value": round(value, 4), "metric_args": {"ci95": ends} if ends else None}
            results.append(EvalResult(**where, metric_type=key, metric_name=title, **measured))
    return results


def push_to_hub(run: Run, stage: str, repository: str, private: bool = False) -> str:
    """Upload the model of `stage` with its card to `repository` (`owner/name`, or `name` for one of your own), which is
    made where there is none; returns its address.

    The token is `HF_TOKEN`, or the one of Colab's or Kaggle's secrets. Raises InputError where there is none, where the
    hub refuses, and where `private` is asked for and the repository is there for everybody.
    """
    from huggingface_hub import HfApi, constants

    from rlhf_utils.platforms.names import first_line

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
    return f"{constants.ENDPOINT}/{name}"


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
