"""Pushing a model: the card holds the run's own numbers, and nothing of this machine."""

import json
from pathlib import Path

import pytest
import yaml
from hub.client import done, start
from hub.server import OTHER_TOKEN, TOKEN
from huggingface_hub import ModelCard
from made import opened
from made_up_run import make_run
from tiny import save_tiny

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_json
from rlhf_utils.report.cards import model_card, push_to_hub
from rlhf_utils.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose PPO policy is a random model, beside made-up figures."""
    folder = tmp_path_factory.mktemp("hub")
    figures = make_run(folder / "figures")
    run = opened("instruct", "tiny", folder / "out")
    for name in run.stages:

        def fill(target, name=name):
            if name == "ppo":
                save_tiny(target)
                write_json(target / "metrics.jsonl", {})

        with run.training(name):
            run.publish(name, fill=fill)
            if name == "evaluation":
                for file in (figures / "evaluation").iterdir():
                    (run.evaluation / file.name).write_bytes(file.read_bytes())
                (run.evaluation / "judge_pairs.jsonl").touch()
            if name == "reward_model":
                (run.evaluation / "reward_model.json").write_text("{}")
    return run


def card_of(run: Run, **changes) -> tuple[dict, str]:
    """The card's metadata and text, of the run with other settings where `changes` says so."""
    other = Run(run.recipe.model_copy(update=changes), run.root.parent)
    other._fingerprints = {stage: run.fingerprint(stage) for stage in run.stages}
    _, front, text = model_card(other, "ppo").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_holds_the_runs_numbers_with_their_intervals(run):
    about, text = card_of(run)
    assert about["pipeline_tag"] == "text-generation" and about["license"] == "mit" and "rlhf" in about["tags"]
    summary = json.loads((run.evaluation / "summary.json").read_text())
    ppo = summary["models"]["ppo"]
    low, high = ppo["gold_ci95"]
    assert f"| {ppo['gold']:.2f} [{low:.2f}, {high:.2f}] |" in text and "- PPO beats SFT on gold: +" in text
    [result] = about["model-index"][0]["results"]
    [gold] = [metric for metric in result["metrics"] if metric["type"] == "gold"]
    assert gold["value"] == pytest.approx(ppo["gold"], abs=1e-4) and gold["args"] == {"ci95": ppo["gold_ci95"]}
    wins = summary["win_rate"]["ppo_vs_sft"]
    summary["win_rate"]["ppo_vs_sft"] = wins | {"length_controlled": {"rate": 0.6543211, "ci95": [0.6, 0.7]}}
    write_json(run.evaluation / "summary.json", summary)
    parsed = {found.metric_type: found for found in ModelCard(model_card(run, "ppo")).data.eval_results}
    alike = parsed["length_controlled_win_rate_ppo_vs_sft"]
    assert alike.metric_value == 0.6543 and alike.metric_args == {"ci95": [0.6, 0.7]}
    assert alike.metric_name == "length-controlled win rate, PPO vs SFT, judged by the gold score"
    assert parsed["win_rate_ppo_vs_sft"].metric_value == pytest.approx(wins["rate"], abs=1e-4)
    assert run.recipe.hash in text and "python -m rlhf_utils run --recipe instruct --scale tiny" in text
    rated = yaml.safe_load(model_card(run, "reward_model").split("---\n", 2)[1])
    metric = rated["model-index"][0]["results"][0]["metrics"][0]
    accuracy = metric["value"]
    assert metric["args"] == {"ci95": summary["reward_model"]["accuracy_ci95"]}
    assert rated["pipeline_tag"] == "text-classification"
    assert accuracy == pytest.approx(summary["reward_model"]["accuracy"], abs=1e-4)
    with pytest.raises(InputError, match="'data' leaves no model; choose one of base, sft"):
        model_card(run, "data")


def test_no_path_of_this_machine_is_in_the_card_and_the_repository_of_a_pinned_policy_is(run, tmp_path):
    data = tmp_path / "secret_rows.jsonl"
    data.write_text("{}")
    about, text = card_of(run, dataset=str(data), policy="owner/name:sub@v1.0", seed=7)
    card = f"{about}{text}"
    assert "secret_rows" not in card and str(Path.home()) not in card and str(run.root) not in card
    # The hub refuses a card whose `base_model` is not the id of a repository.
    assert about["base_model"] == "owner/name" and "| base policy | `owner/name:sub@v1.0` |" in text
    about, _ = card_of(run, policy="smollm2")
    assert about["license"] == "apache-2.0" and about["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


PUSHED = """
import json, os, sys
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.models.loading import load_policy
from rlhf_utils.report.cards import push_to_hub
from rlhf_utils.runs.run import Run

run, told = Run.load(sys.argv[1]), []
for token, name, private in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = token
    try:
        told.append(push_to_hub(run, "ppo", name, private))
    except InputError as error:
        told.append(str(error))
os.environ["HF_TOKEN"] = json.loads(sys.argv[2])[0][0]
load_policy("me/open", detect_device())
print(json.dumps(told))
"""


@pytest.mark.slow
def test_what_is_uploaded_is_the_model_with_its_card_also_into_a_repository_that_is_there(run, hub, tmp_path):
    pushes = [(TOKEN, "me/open", False), (TOKEN, "me/open", False), (TOKEN, "mine", True), (TOKEN, "me/open", True)]
    pushes += [(TOKEN, "a b c", False), ("hf_expired", "me/open", False), (OTHER_TOKEN, "me/new", False)]
    out, _ = done(start(PUSHED, hub.url, tmp_path, str(run.root), json.dumps(pushes)))
    told = json.loads(out)
    assert told[:3] == [f"{hub.url}/me/open", f"{hub.url}/me/open", f"{hub.url}/me/mine"]
    assert "is there already, and public" in told[3] and not any("\n" in line or "hf_" in line for line in told)
    assert [line.partition(": ")[0] for line in told[4:]] == [f"cannot push to {name}" for _, name, _ in pushes[4:]]
    for name, private in (("me/open", False), ("me/mine", True)):
        there = hub.repositories["model", name]
        files = there.commits[there.revisions["main"]]
        assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
        assert "stage.json" not in files and there.private == private
        assert f'pipeline("text-generation", "{name}")'.encode() in files["README.md"]


def test_without_a_token_nothing_is_sent(run, monkeypatch):
    monkeypatch.setattr("rlhf_utils.report.cards.hub_token", lambda: None)
    with pytest.raises(InputError, match="needs a token.*HF_TOKEN"):
        push_to_hub(run, "ppo", "me/mine")
