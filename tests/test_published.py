"""What of a run on somebody else's texts goes into the repository."""

import pages
import pandas as pd
import pytest
from made_up_run import change, make_run
from published import QUOTED_CHARACTERS, QUOTED_ROWS, publish_files, quoted

from rlhf_utils.evaluation.judging import KEY, PAIRS
from rlhf_utils.evaluation.seeds import figures_of
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.report.page import write_report

# What nothing else in a run says: a word at the end of each text of the dataset.
SECRET = "xyzzyvaluska"


@pytest.fixture
def run(tmp_path):
    """A run whose prompts and references all end in a word that must not be published."""
    run = make_run(tmp_path / "outputs", prompts=QUOTED_ROWS + 10)
    path, end = run / "evaluation" / "samples.csv", " and so on" * 40 + f" {SECRET}"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows.assign(prompt=rows["prompt"] + end, reference=rows["reference"] + end).to_csv(path, index=False)

    def lengthen(frontier):
        for said in (said for point in frontier["points"] for said in point.get("completions", ())):
            said["prompt"] += end

    change(run, "frontier", lengthen)
    assert any(point.get("completions") for point in read_json(run / "evaluation" / "frontier.json")["points"])
    record = read_json(run / "run.json")
    record["settings"]["dataset"] = "outputs/rows.jsonl"
    write_json(run / "run.json", record)
    write_report(run)
    return run


def test_nothing_of_the_dataset_but_the_beginnings_of_prompts(run, tmp_path):
    assert SECRET in (run / "report.html").read_text() and SECRET in (run / "evaluation" / "frontier.json").read_text()
    # The examples of overoptimisation, and whatever else the files hold of the dataset.
    folder = quoted(run, tmp_path / "small")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "samples.csv", "summary.json"} <= {path.name for path in files}
    assert not {PAIRS, KEY} & {path.name for path in files}
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []
    rows = pd.read_csv(folder / "evaluation" / "samples.csv", dtype=str, keep_default_na=False)
    told, rest = rows[:QUOTED_ROWS], rows[QUOTED_ROWS:]
    assert len(rest) == 10 and not rows["reference"].any() and not rest[["prompt", "ppo_response"]].any(axis=None)
    assert told["prompt"].str.len().max() <= QUOTED_CHARACTERS and told["prompt"].str.endswith(" …").all()
    assert told["ppo_response"].str.len().min() > 0, "what the models say is whole"
    # Figures are those of all prompts.
    before, after = (read_json(one / "evaluation" / "summary.json") for one in (run, folder))
    assert before["models"] == after["models"] and before["prompts"] == after["prompts"]


@pytest.mark.parametrize("end", ["", " and so on" * 20])
def test_its_figures_are_those_of_all_prompts(tmp_path, end):
    run = make_run(tmp_path / "outputs", prompts=QUOTED_ROWS + 10)
    path = run / "evaluation" / "samples.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    rows.assign(prompt=[f"The film number {i}{end}" for i in range(len(rows))]).to_csv(path, index=False)
    published, whole = (figures_of(one) for one in (quoted(run, tmp_path / "small"), run))
    for whose, figures in whole.items():
        for name, (values, clusters) in figures.items():
            again, names = published[whose][name]
            assert list(again) == list(values) and len({*names}) == len({*clusters}), name
    texts = pd.read_csv(tmp_path / "small" / "evaluation" / "samples.csv", keep_default_na=False)["ppo_response"]
    assert (texts != "").sum() == (QUOTED_ROWS if end else QUOTED_ROWS + 10)


@pytest.mark.parametrize("place", ["/data/rows.jsonl", "../shared/rows.jsonl", "~/rows.jsonl"])
def test_a_run_that_names_a_place_of_this_machine_is_not_published(run, place):
    record = read_json(run / "run.json")
    record["settings"]["dataset"] = place
    write_json(run / "run.json", record)
    with pytest.raises(InputError, match="a place of this machine") as error:
        publish_files(run)
    assert place in str(error.value)


def test_the_page_of_real_runs_says_what_they_found(run, tmp_path, monkeypatch):
    folder = quoted(run, tmp_path / "published" / "instruct-small")
    monkeypatch.setattr(pages, "PUBLISHED", folder.parent)
    page = pages.published_runs().partition("\n## Instruction following: `instruct-tiny`")[0]
    summary = read_json(folder / "evaluation" / "summary.json")
    assert "## Instruction following: `instruct-small`" in page
    assert "Made by `make small RECIPE=instruct DATA=outputs/rows.jsonl SEEDS=" in page
    assert f"{summary['models']['ppo']['reward']:.2f}" in page and page.count("> PPO: *") == 10
    rows = read_json(folder / "run.json")["stages"]["data"]["results"]["rows"]
    assert f"sft {rows['sft']:,}" in page and "| 03_02_ppo_training | " in page
    short = pages.real()
    assert f"{summary['models']['ppo']['gold']:.2f}" in short and "> PPO: *" not in short, "a dialogue"
    assert "| model | gold |" in short and "docs/example_run/instruct-small/plots/" in short
