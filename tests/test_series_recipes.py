"""The other recipes through the whole series, at reduced steps: what applies runs, what does not is left out."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from test_series import ROOT, call, run_command

from rlhf_utils.platforms.files import read_json
from rlhf_utils.report.results import MODELS
from rlhf_utils.series import SERIES

# eli5 differs from instruct in its data and settings alone; test_hub_names.py reads the data and models of all four.
RECIPES = ("helpful_harmless", "imdb")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=RECIPES)
def done(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    told = call(run_command(Path("out"), "--recipe", request.param), folder)
    assert told.status == 0, told.err
    root = folder / "out" / f"{request.param}-tiny"
    return SimpleNamespace(
        name=request.param, root=root, told=told, summary=read_json(root / "evaluation/summary.json")
    )


def test_the_summary_holds_the_models_of_the_recipe(done):
    plain = done.name == "imdb"
    assert list(done.summary["models"]) == (["base", "ppo"] if plain else list(MODELS))
    assert (done.summary["recipe"], done.summary["data"]) == (done.name, "embedded")
    for figures in done.summary["models"].values():
        assert math.isfinite(figures["reward"]) and 0 <= figures["gold"] <= 10
        assert (figures["rougeL"] is None) == plain
        assert ("positivity" in figures) == plain and 0 <= figures.get("positivity_median", 0.5) <= 1
    assert done.summary["reward_model"]["of"] == ("texts" if plain else "pairs")
    assert ("assistant" in done.summary) == (done.name == "helpful_harmless")


def test_the_assistant_score_covers_36_prompts(done):
    if "assistant" not in done.summary:
        pytest.skip("this recipe has no assistant score")
    found, table = done.summary["assistant"], pd.read_csv(done.root / "evaluation/assistant.csv")
    assert (found["prompts"], found["unsafe_prompts"], len(table)) == (36, 12, 36)
    assert set(done.summary["models"]) == set(MODELS) and "mean-pooled" in found["relevance_by"]
    for name, figures in done.summary["models"].items():
        assert table[f"{name}_quality"].mean() == pytest.approx(figures["quality"])
        assert 0 <= figures["refusal_unsafe"] <= 1 and 0 <= figures["refusal_harmless"] <= 1
        assert table.loc[~table["unsafe"], f"{name}_helpfulness"].mean() == pytest.approx(figures["helpfulness"])
    for wins in (done.summary["win_rate"]["ppo_vs_base"], found["win_rate"]["ppo_vs_sft"]):
        assert wins["wins"] + wins["losses"] + wins["ties"] == 36 and wins["judged_by"] == "quality"


def test_notebooks_that_do_not_apply_are_left_out_and_the_others_are_fit_to_be_shown(done):
    executed = sorted(path.stem for path in (done.root / "notebooks").glob("*.ipynb"))
    imdb = {"01_02_full_finetuning", "01_03_qlora", "02_02_reward_model", "04_02_reward_hacking"}
    left_out = imdb if done.name == "imdb" else {"02_03_sentiment_classifier"}
    assert len(executed) == len(SERIES) - len(left_out) and not left_out & set(executed)
    for path in (done.root / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        shown = json.dumps([cell.outputs for cell in cells])
        # What they show is the same in every recipe.
        assert "This recipe" in shown or path.stem[:5] in ("03_01", "04_02"), path
        for debris in (str(ROOT), "Warning", "Traceback", "it/s"):
            assert debris not in shown, f"{debris!r} in {path.stem}"


def test_the_report_has_no_hole(done):
    page = (done.root / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"\d\d_\w+ is not shown|\bnan\b|\bNone\b", text)
    assert "Everything is in" in done.told.out
