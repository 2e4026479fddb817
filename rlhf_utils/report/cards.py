"""Publishing a run's model on the Hugging Face hub, with a card made of the run's own numbers."""

from __future__ import annotations

import html
import json
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from rlhf_utils.models.loading import copy_model
from rlhf_utils.platforms.bootstrap import repository_address
from rlhf_utils.platforms.errors import InputError, visible
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import DATASET, hub_name, is_there, known_as
from rlhf_utils.platforms.packaged import PACKAGED
from rlhf_utils.platforms.runtime import hub_token
from rlhf_utils.report.findings import model_table, sentences
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.settings.sections import EMBEDDED, flat

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ROLES = {
    "base": "the base model",
    "sft": "the fine-tuned policy",
    "sft_qlora": "the policy fine-tuned with QLoRA",
    "reward_model": "the reward model",
    "ppo": "the policy after PPO",
}


def model_card(run: Run, stage: str, repository: str = "OWNER/NAME") -> str:
    """README.md of the model of `stage` in `repository`: what it is, the run's figures with their intervals, how to use
    and remake it.

    Raises InputError for a stage that leaves no model, and for one that is not complete.
    """
    if stage not in ROLES:
        raise InputError(f"stage {stage!r} leaves no model; choose one of {', '.join(ROLES)}")
    run.require(stage)
    recipe, record = run.recipe, run.record()
    policy = _public(recipe.policy)
    made = read_json(run.folder(stage) / "stage.json")["made"]
    summary_file = run.evaluation / "summary.json"
    summary = read_json(summary_file) if run.is_complete("evaluation") else {}
    table = model_table(summary) if summary else {"columns": [], "rows": []}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rlhf_utils.report", "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("model_card.md.j2").render(
        title=recipe.title,
        role=ROLES[stage],
        description=recipe.description,
        stage=stage,
        recipe=recipe.name,
        scale=recipe.scale,
        seed=recipe.seed,
        address=repository_address(),
        pipeline="text-classification" if stage == "reward_model" else "text-generation",
        # A path of this machine means nothing elsewhere.
        # The hub takes no revision there.
        base=known_as(policy) if policy else None,
        dataset=hub_name(dataset, DATASET)[0] if (dataset := _public(recipe.dataset)) else None,
        license=PACKAGED[policy].license if policy in PACKAGED else "mit",
        policy=policy or "a small GPT-2 trained by the series itself",
        data=_public(recipe.dataset) or "the series' embedded world, or a file of the author's",
        headlines=[_markdown(line) for line in sentences(summary)] if summary else [],
        **table,
        prompts=summary.get("prompts"),
        usage=_usage(run, stage, repository),
        format=f"Prompts are worded as `{recipe.template.format('...')!r}`.",
        recipe_hash=record["recipe_hash"],
        template_hash=record["template_hash"],
        commit=made["git_commit"] or "unknown",
        versions={name: version for name, version in made["versions"].items() if version},
        changes=_changes(run),
    )


def push_to_hub(run: Run, stage: str, repository: str, private: bool = False) -> str:
    """Upload the model of `stage` with its card to `repository` (`owner/name`, or `name` for one of your own), which is
    made where there is none; returns its address.

    The token is `HF_TOKEN`, or the one of Colab's or Kaggle's secrets. Raises InputError where there is none, where the
    hub refuses, and where `private` is asked for and the repository is there for everybody.
    """
    from huggingface_hub import HfApi, constants

    from rlhf_utils.platforms.hub_errors import why_not_written

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
            folder = Path(name)
            copy_model(run.folder(stage), folder)
            (folder / "README.md").write_text(model_card(run, stage, repository), encoding="utf-8")
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{stage} of {run.root.name}")
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
        if error.response.status_code != 409 and not (
            error.response.status_code in (401, 402, 403) and "/" in repository and api.repo_exists(repository)
        ):
            raise
        return False
    return True


def _public(source: str) -> str | None:
    return None if source == EMBEDDED or is_there(source) else source


def _usage(run: Run, stage: str, repository: str) -> str:
    prompt = run.recipe.template.format("How do I clean my leather sofa?")
    if stage == "reward_model":
        return (
            "from rlhf_utils.platforms.runtime import detect_device\n"
            "from rlhf_utils.rewards import load_reward\n\n"
            f'reward = load_reward("{repository}", detect_device())\n'
            'reward(["a prompt"], ["a response"])'
        )
    return (
        f'from transformers import pipeline\n\ngenerate = pipeline("text-generation", "{repository}")\n'
        f"generate({prompt!r}, do_sample=True, temperature={run.recipe.generation.temperature:g}, "
        f"max_new_tokens={run.recipe.generation.max_new_tokens})"
    )


def _changes(run: Run) -> str:
    """The settings that differ from the recipe's, as arguments of the command; paths are left out."""
    usual = flat(load_recipe(run.recipe.name, run.recipe.scale).model_dump(mode="json"))
    found = flat(run.recipe.model_dump(mode="json"))
    changed = [(key, value) for key, value in found.items() if usual.get(key) != value]
    plain = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in changed]
    return "".join(f" --set {shlex.quote(f'{key}={value}')}" for key, value in plain if not is_there(value))


def _markdown(text: str) -> str:
    """A sentence, which may quote a phrase of a model, as Markdown that shows just that."""
    return html.escape(visible(text), quote=False).replace("`", "\\`").replace("](", "]\\(")
