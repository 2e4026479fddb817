"""Publishing a run's model on the Hugging Face hub, with a card made of the run's own numbers."""

from __future__ import annotations

import html
import json
import shlex
import tempfile
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, HfApi

ROLES = {
    "base": "the base model",
    "sft": "the fine-tuned policy",
    "sft_qlora": "the policy fine-tuned with QLoRA",
    "reward_model": "the reward model",
    "ppo": "the policy after PPO",
}


def model_card(run: Run, stage: str, repository: str = "OWNER/NAME") -> str:
    """README.md of the model of `stage` in `repository`: what it is, the run's figures with their intervals, how to use
    and reproduce it.

    Raises InputError for a stage that leaves no model, and for one that is not complete.
    """
    from huggingface_hub import ModelCard, ModelCardData

    if stage not in ROLES:
        raise InputError(f"stage {stage!r} leaves no model; choose one of {', '.join(ROLES)}")
    run.require(stage)
    recipe = run.recipe
    # A path of this machine means nothing elsewhere.
    policy, dataset = (None if name == EMBEDDED or is_there(name) else name for name in (recipe.policy, recipe.dataset))
    dataset_id = known_as(dataset) if dataset else None
    summary = read_json(run.evaluation / "summary.json") if run.is_complete("evaluation") else {}
    task = "text-classification" if stage == "reward_model" else "text-generation"
    about = ModelCardData(
        license=PACKAGED[policy].license if policy in PACKAGED else "mit",
        library_name="transformers",
        pipeline_tag=task,
        # The hub takes no revision there.
        base_model=known_as(policy) if policy else None,
        datasets=[dataset_id] if dataset_id else None,
        tags=["rlhf", stage],
        model_name=f"{recipe.title}: {ROLES[stage]}",
        eval_results=_results(summary, stage, task, dataset_id) or None,
    )
    card = ModelCard.from_template(
        about,
        template_str=(resources.files(__package__) / "templates" / "model_card.md.j2").read_text(encoding="utf-8"),
        recipe=recipe,
        stage=stage,
        role=ROLES[stage],
        address=written_address(),
        policy=policy or "a small GPT-2 trained by the series itself",
        data=dataset or "the series' synthetic dataset, or a file of the author's",
        headlines=[_markdown(line) for line in sentences(summary)] if summary else [],
        rows=model_table(summary),
        prompts=summary.get("prompts"),
        usage=_usage(run, stage, repository),
        record=run.record(),
        made=read_json(run.folder(stage) / "stage.json")["made"],
        changes=_changes(run),
    )
    return str(card)


def _results(summary: dict, stage: str, task: str, dataset: str | None) -> list[EvalResult]:
    """The figures of the model of `stage` as the hub keeps them beside a model, each with its 95% CI."""
    from huggingface_hub import EvalResult

    figures = (
        summary.get("reward_model") if stage == "reward_model" else (summary.get("models") or {}).get(stage)
    ) or {}
    titles = {"accuracy": "accuracy on held-out pairs"} | {key: title for key, title, _ in COLUMNS}
    source = {"task_type": task, "dataset_type": dataset or "synthetic", "dataset_split": "test"}
    source["dataset_name"] = dataset or "synthetic dataset of the series, or a local file"
    results = []
    for key, title in titles.items():
        if figures.get(key) is not None:
            value, ends = round(figures[key], 4), figures.get(f"{key}_ci95")
            measured = {"metric_value": value, "metric_args": {"ci95": ends} if ends else None}
            results.append(EvalResult(**source, metric_type=key, metric_name=title, **measured))
    return results


def push_to_hub(run: Run, stage: str, repository: str, private: bool = False) -> str:
    """Upload the model of `stage` with its card to `repository` (`owner/name`, or `name` for one of your own), which is
    made where there is none; returns its address.

    The token is `HF_TOKEN`, or the one of Colab's or Kaggle's secrets. Raises InputError where there is none, where the
    hub refuses, and where `private` is asked for and the repository is there for everybody.
    """
    from huggingface_hub import HfApi, constants

    from rlhf_utils.platforms.hub import why_not_written

    token = hub_token()
    if token is None:
        raise InputError("pushing needs a token of the Hugging Face hub with the right to write; set HF_TOKEN")
    model_card(run, stage)
    api = HfApi(token=token)
    try:
        new = _made(api, repository, private)
        if "/" not in repository:
            repository = f"{api.whoami()['name']}/{repository}"
        if private and not new and not api.model_info(repository).private:
            raise InputError(f"{repository} is there already, and public; make it private on its page, or name another")
        with tempfile.TemporaryDirectory() as name:
            copy_model(run.folder(stage), Path(name))
            (Path(name) / "README.md").write_text(model_card(run, stage, repository), encoding="utf-8")
            api.upload_folder(repo_id=repository, folder_path=name, commit_message=f"{stage} of {run.root.name}")
    except InputError:
        raise
    except Exception as error:  # of the hub's library and of the HTTP library under it, which has changed
        raise InputError(f"cannot push to {repository}: {why_not_written(error)}") from None
    return f"{constants.ENDPOINT}/{repository}"


def _made(api: HfApi, repository: str, private: bool) -> bool:
    """Make the repository; False where it is there already, which shows in several ways."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repository, private=private, exist_ok=False)
    except HfHubHTTPError as error:
        # A token may have the right to write into a repository, and none to make one.
        refused = error.response.status_code in (401, 402, 403)
        if error.response.status_code != 409 and not (refused and "/" in repository and api.repo_exists(repository)):
            raise
        return False
    return True


def _usage(run: Run, stage: str, repository: str) -> str:
    if stage == "reward_model":
        return (
            "from rlhf_utils.platforms.runtime import detect_device\n"
            "from rlhf_utils.rewards import load_reward\n\n"
            f'reward = load_reward("{repository}", detect_device())\n'
            'reward(["a prompt"], ["a response"])'
        )
    prompt, sampling = run.recipe.template.format("How do I clean my leather sofa?"), run.recipe.generation
    return (
        f'from transformers import pipeline\n\ngenerate = pipeline("text-generation", "{repository}")\n'
        f"generate({prompt!r}, do_sample=True, temperature={sampling.temperature:g}, "
        f"max_new_tokens={sampling.max_new_tokens})"
    )


def _changes(run: Run) -> str:
    """The settings that differ from the recipe's, as arguments of the command; paths are left out."""
    usual = flat(load_recipe(run.recipe.name, run.recipe.scale).model_dump(mode="json"))
    found = flat(run.recipe.model_dump(mode="json"))
    changed = {key: value for key, value in found.items() if usual.get(key) != value}
    plain = {key: value if isinstance(value, str) else json.dumps(value) for key, value in changed.items()}
    return "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in plain.items() if not is_there(value))


def _markdown(text: str) -> str:
    """A sentence, which may quote a phrase of a model, as Markdown that shows just that."""
    return html.escape(visible(text), quote=False).replace("`", "\\`").replace("](", "]\\(")
