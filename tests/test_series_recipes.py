"""The other recipes through all their notebooks, at reduced steps, the cells in this process: what applies runs, what
does not is left out."""

import contextlib
import io
import math
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from made import make, opened
from reduced import DEMONSTRATION, REDUCED
from tiny import one_thread  # noqa: F401

from rlhf_utils.evaluation import LABELS as MODELS
from rlhf_utils.platforms import processes, runtime
from rlhf_utils.platforms.files import read_json
from rlhf_utils.platforms.names import PACKAGED
from rlhf_utils.series import SERIES, _applies, run_cells
from rlhf_utils.settings.recipes import parse_assignments

# eli5 differs from instruct in its data and settings alone; test_hub_names.py reads the data and models of all four.
RECIPES = ("helpful_harmless", "imdb")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=RECIPES)
def done(request, tmp_path_factory) -> SimpleNamespace:
    settings = [*REDUCED, *(DEMONSTRATION if request.param != "imdb" else ())]
    run = opened(request.param, "tiny", tmp_path_factory.mktemp(request.param), parse_assignments(settings))
    said = io.StringIO()
    make(run, "base", "data")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        for notebook in SERIES:
            if _applies(run, notebook):
                with processes.environment(**{runtime.HEADLESS: "1"}):
                    run_cells(run, notebook)
    summary = read_json(run.evaluation / "summary.json")
    return SimpleNamespace(name=request.param, run=run, root=run.root, said=said.getvalue(), summary=summary)


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


def test_models_are_ranked_and_kinds_of_prompts_told_apart_by_the_judge(done):
    ranked, plain = done.summary["bradley_terry"], done.name == "imdb"
    assert (ranked["judged_by"], ranked["anchor"]) == ("gold", "base" if plain else "sft")
    assert list(ranked["models"]) == list(done.summary["models"])
    assert 0 <= ranked["models"]["ppo"][f"wins_vs_{ranked['anchor']}"] <= 1
    assert sum(row["prompts"] for row in done.summary["categories"] if row["by"] == "prompt length") in (0, 24)
    assert not plain or {row["by"] for row in done.summary["categories"]} <= {"prompt length"}
    points = read_json(done.root / "evaluation" / "frontier.json")["points"]
    assert [len(point["completions"]) for point in points] == [4] * len(points)
    assert points[0]["completions"][0].keys() == {"prompt", "response", "reward", "gold"}


def test_the_assistant_score_covers_36_prompts(done):
    if "assistant" not in done.summary:
        pytest.skip("this recipe has no assistant score")
    embedder = "minilm" if PACKAGED["minilm"].source else "mean-pooled"
    found, table = done.summary["assistant"], pd.read_csv(done.root / "evaluation/assistant.csv")
    assert (found["prompts"], found["unsafe_prompts"], len(table)) == (36, 12, 36)
    assert set(done.summary["models"]) == set(MODELS) and embedder in found["relevance_by"]
    for name, figures in done.summary["models"].items():
        assert table[f"{name}_quality"].mean() == pytest.approx(figures["quality"])
        assert 0 <= figures["refusal_unsafe"] <= 1 and 0 <= figures["refusal_harmless"] <= 1
        assert table.loc[~table["unsafe"], f"{name}_relevance"].mean() == pytest.approx(figures["relevance"])
    wins = done.summary["win_rate"]["ppo_vs_base"]
    assert wins["wins"] + wins["losses"] + wins["ties"] == 36 and wins["judged_by"] == "quality"


def test_notebooks_that_do_not_apply_are_left_out(done):
    imdb = ["01_02_full_finetuning", "01_03_qlora", "02_02_reward_model", "04_02_reward_hacking"]
    left_out = [notebook.name for notebook in SERIES if not _applies(done.run, notebook)]
    assert left_out == (imdb if done.name == "imdb" else ["02_03_sentiment_classifier"])
    for debris in ("Warning", "Traceback", "it/s"):
        assert debris not in done.said


def test_the_report_has_no_hole(done):
    page = (done.root / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"base64,[^\"]+", "", page)
    assert not re.search(r"\d\d_\w+ is not shown|\bnan\b|\bNone\b", text)
