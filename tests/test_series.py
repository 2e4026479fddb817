"""The whole series through papermill, at reduced steps: ended in every way, failed, repaired, and called once more."""

import csv
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from made import make, opened
from reduced import DEMONSTRATION, REDUCED
from soak.soak import Series, Tally, differences, end_within
from tiny import one_thread  # noqa: F401

from rlhf_utils.platforms.files import read_json, read_jsonl
from rlhf_utils.series import SERIES
from rlhf_utils.settings.recipes import parse_assignments

ROOT = Path(__file__).resolve().parents[1]
# The notebooks of recipe instruct.
SHOWN = [notebook for notebook in SERIES if notebook.form != "continuation"]
MODELS = ("base", "sft", "sft_qlora", "ppo")
SETTINGS = (*REDUCED, *DEMONSTRATION, "alternatives=[dpo,rloo,grpo,best_of_n]")
# Looked for afterwards in whatever the run leaves and says.
SECRETS = {"HF_TOKEN": "hf_PlantedForTheTestOfTheSeries0000", "WANDB_API_KEY": "planted5d41402abc4b2a76b9719d"}


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> SimpleNamespace:
    """One run with everything that can happen to it: killed, stopped, failed, repaired, and called once more."""
    folder = tmp_path_factory.mktemp("series") / "of {seed}, %d 'quotes\", $HOME & #ü [x]"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        ended, tally = Series(folder / "out", SETTINGS), Tally()

        def call(*extra: str) -> SimpleNamespace:
            started = time.perf_counter()
            done = ended.run(*extra)
            seconds, err = time.perf_counter() - started, done.stderr.splitlines()
            return SimpleNamespace(status=done.returncode, out=done.stdout, err=err, seconds=seconds)

        assert end_within(ended, "sft", "SIGKILL", 0.5, tally)
        killed = read_json(ended.root / "run.json")
        assert end_within(ended, "reward_model", "SIGKILL of the series alone", 0.5, tally)
        failed = call("--set", "ppo.learning_rate=1e30")
        return SimpleNamespace(
            root=ended.root, killed=killed, tally=tally, failed=failed, repaired=call(), again=call()
        )


@pytest.mark.slow
def test_the_series_goes_on_after_a_kill_and_after_a_failure(told):
    assert told.killed["stages"]["base"]["state"] == "complete"
    assert told.killed["stages"]["sft"]["state"] == "running"
    assert len(told.tally.ways) == 2 and not told.tally.wrong
    assert told.failed.status == 1 and not told.failed.out
    assert told.failed.err[0] == f"[1/{len(SHOWN)}] {SHOWN[0].path}: complete, skipped"
    assert told.failed.err[-1].startswith(f"failed: {SHOWN[5].path}, cell In [")
    assert "TrainingError: update 0: the loss is nan" in told.failed.err[-1]
    assert told.repaired.status == 0, told.repaired.err
    assert [": complete, skipped" in line for line in told.repaired.err if ":" in line[6:]][:5] == [True] * 5
    assert sum(": done in " in line for line in told.repaired.err) >= 3


@pytest.mark.slow
def test_no_secret_is_in_what_a_run_leaves_and_says(told):
    """Killed, failed, repaired, skipped: in no file, notebook, record or line of it."""
    files = [path for path in told.root.parents[1].rglob("*") if path.is_file()]
    assert len(files) > 50 and any(path.suffix == ".ipynb" for path in files)
    for secret in SECRETS.values():
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        for done in (told.failed, told.repaired, told.again):
            assert secret not in "\n".join([done.out, *done.err])


@pytest.mark.slow
def test_the_second_call_skips_everything_and_says_the_same(told):
    assert told.again.status == 0 and told.again.out == told.repaired.out
    assert told.again.err == [
        f"[{i}/{len(SHOWN)}] {notebook.path}: complete, skipped" for i, notebook in enumerate(SHOWN, 1)
    ]
    assert told.again.seconds < 20
    lines = told.again.out.splitlines()
    assert lines[0].startswith("model") and f"Everything is in {told.root}" in lines


@pytest.mark.slow
def test_a_run_that_was_ended_in_every_way_is_one_made_in_one_go(told, tmp_path):
    """The soak in short (`python tests/soak/soak.py --kills 20`); the cells in this process make the other run."""
    straight = opened("instruct", "tiny", tmp_path, parse_assignments([*SETTINGS]))
    make(straight, *straight.stages)
    assert not differences(told.root, straight.root)


@pytest.mark.slow
def test_checkpoints_load_with_from_pretrained_alone(told):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    for name in (*MODELS, "reward_model", "dpo", "rloo", "grpo", "best_of_n"):
        kind = AutoModelForSequenceClassification if name == "reward_model" else AutoModelForCausalLM
        folder = told.root / "checkpoints" / name
        model, info = kind.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"], name
        assert not [key for key in info["unexpected_keys"] if "lm_head" not in key], name
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
        if name == "reward_model":
            assert model.config.num_labels == 1
    assert (told.root / "checkpoints" / "ppo" / "value_head.safetensors").is_file()


@pytest.mark.slow
def test_what_lies_in_the_folder_of_a_run(told):
    files = {str(path.relative_to(told.root)) for path in told.root.rglob("*") if path.is_file()}
    pictures = "01_sft_full_vs_qlora 02_reward_model_accuracy 03_ppo_training 04_rouge_comparison 04_reward_comparison"
    expected = {f"plots/{name}.png" for name in [*pictures.split(), "04_reward_kl_frontier", "04_alternatives"]}
    expected |= {f"notebooks/{notebook.name}.ipynb" for notebook in SHOWN}
    expected |= {"report.html", "run.json", "evaluation/summary.json", "evaluation/samples.csv"}
    expected |= {f"checkpoints/{name}/metrics.jsonl" for name in ("sft", "sft_qlora", "reward_model", "ppo")}
    assert expected <= files, expected - files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".h5"))]
    # Who is killed in the middle of telling how far it is leaves that file behind, and nothing else.
    rest = [name for name in files if not name.startswith("..progress.txt.")]
    untidy = [name for name in rest if any(x in name for x in (".tmp", "partial", "running", ".work/"))]
    assert not untidy and not [name for name in files if name.endswith(".failed.ipynb")]
    assert len(read_jsonl(told.root / "checkpoints" / "ppo" / "metrics.jsonl")) == 2


@pytest.mark.slow
def test_the_summary_has_the_promised_figures(told):
    text = (told.root / "evaluation" / "summary.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    summary = json.loads(text)
    assert {"recipe", "scale", "reward_model", "models", "win_rate"} <= summary.keys()
    assert (summary["recipe"], summary["scale"]) == ("instruct", "tiny")
    judged = {"accuracy", "accuracy_ci95", "untrained_accuracy", "length_baseline_accuracy"}
    assert judged < set(summary["reward_model"]) and len(summary["reward_model"]["untrained_accuracies"]) == 5
    assert summary["prompts_distinct"] <= 24 and set(summary["near_duplicates"]) == {"sft", "reward", "ppo"}
    assert set(summary["reward_gold_spearman"]) == {"pooled", *MODELS}
    for gains in summary["paired"].values():
        assert all(gain is None or gain["p"] <= gain["p_holm"] <= 1 for gain in gains.values())
    measured = {"reward", "reward_ci95", "gold", "gold_ci95", "rouge1", "rouge2", "rougeL", "eos_rate", "distinct_2"}
    assert list(summary["models"]) == list(MODELS)
    for figures in summary["models"].values():
        assert measured | {"kl_to_sft", "mean_tokens"} <= set(figures)
        for name in ("reward", "gold"):
            low, high = figures[f"{name}_ci95"]
            assert low <= figures[name] <= high
    assert abs(summary["models"]["sft"]["kl_to_sft"]) < 1e-4 and summary["models"]["base"]["kl_to_sft"] > 0.1
    for pair in ("ppo_vs_sft", "ppo_vs_base"):
        wins = summary["win_rate"][pair]
        assert {"wins", "losses", "ties", "rate", "ci95"} <= set(wins)
        assert wins["wins"] + wins["losses"] + wins["ties"] == 24
        assert math.isclose(wins["rate"], (wins["wins"] + wins["ties"] / 2) / 24)


@pytest.mark.slow
def test_samples_agree_with_the_summary(told):
    with open(told.root / "evaluation" / "samples.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = read_json(told.root / "evaluation" / "summary.json")
    assert len(rows) == 24
    for name in MODELS:
        assert {f"{name}_response", f"{name}_reward", f"{name}_gold"} <= set(rows[0])
        for score in ("reward", "gold"):
            mean = sum(float(row[f"{name}_{score}"]) for row in rows) / len(rows)
            assert math.isclose(mean, summary["models"][name][score], rel_tol=1e-5, abs_tol=1e-6)
    assert all(row["prompt"] and row["reference"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("notebook", SHOWN, ids=lambda notebook: notebook.name)
def test_executed_notebooks_are_fit_to_be_shown(told, notebook):
    executed = nbformat.read(told.root / "notebooks" / f"{notebook.name}.ipynb", as_version=4)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        text = json.dumps(output.get("data", {}).get("text/plain", "")) + output.get("text", "")
        for debris in (str(ROOT), "Warning", "it/s", "%|", "\r"):
            assert debris not in text, f"{debris!r} in {text[:300]}"
