"""The small GPT-2 made here: tokenizer, training, resuming, cache."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from made import opened
from reduced import REDUCED
from tiny import one_thread  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.runs.stopping import Stopped
from rlhf_utils.series import SERIES, run_cells
from rlhf_utils.settings.recipes import parse_assignments
from rlhf_utils.toyworld import WORLDS

SETTINGS = ("base.steps=12", "base.batch_size=4", "base.documents=30", "base.block_tokens=32")
TEXTS = WORLDS["instruct"].corpus(30, seed=0)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """What notebook 1.1 defines."""
    settings = parse_assignments([*REDUCED, *SETTINGS])
    return run_cells(opened("instruct", "tiny", tmp_path_factory.mktemp("out"), settings), SERIES[0])


def train(cells, texts, folder, progress=lambda *entry: None):
    cells["run"].progress = progress
    cells["train_base"](texts, folder)


@pytest.fixture(scope="module")
def straight(cells, tmp_path_factory):
    """A training without interruption: its folder, and the progress it told."""
    folder, seen = tmp_path_factory.mktemp("straight") / "base", []
    train(cells, TEXTS, folder, progress=lambda *entry: seen.append(entry))
    return folder, seen


def test_a_model_is_trained_and_loads_with_from_pretrained_alone(straight):
    folder, seen = straight
    losses = [float(text.rpartition(" ")[2]) for text, _, _ in seen]
    assert losses[-1] < losses[0] - 0.05
    assert [step for _, step, _ in seen] == list(range(1, 13)) and {total for _, _, total in seen} == {12}
    config = AutoModelForCausalLM.from_pretrained(folder).config
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    assert config.bos_token_id == config.eos_token_id == config.pad_token_id == end
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
    assert config.activation_function == "gelu_pytorch_tanh" and (folder / "model.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


@pytest.mark.parametrize("asked", [False, True], ids=["killed", "asked to stop"])
def test_an_interrupted_training_resumes_to_the_same_weights(cells, straight, tmp_path, asked):
    folder, steps = tmp_path / "base", []

    def interrupt(text, step, total):
        if step == 7 and not asked:
            raise KeyboardInterrupt
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped if asked else KeyboardInterrupt):
        train(cells, TEXTS, folder, progress=interrupt)
    assert not folder.exists()
    # A checkpoint that was cut off while it was written: newest, and without its marker.
    (tmp_path / ".base.work" / "checkpoint-11").mkdir()
    train(cells, TEXTS, folder, progress=lambda text, step, total: steps.append(step))
    assert steps[0] == (9 if asked else 5), "asked to stop it saves the step after"
    first, second = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (straight[0], folder))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_too_little_text_is_refused_and_any_real_text_will_do(cells, tmp_path):
    for texts in (["", "  "], ["a few words only"]):
        with pytest.raises(InputError, match="text"):
            train(cells, texts, tmp_path / "base")
        assert not (tmp_path / "base").exists()
    texts = ["\n\nHuman: naïve <b>HTML</b> \x1b[1m?\n\nAssistant: 😀 yes & no.", "日本語 " * 30] * 40
    train(cells, texts, tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_the_cache_is_keyed_by_content_and_two_callers_at_once_train_once(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    made, train_base, cached_base = [], cells["train_base"], cells["cached_base"]
    monkeypatch.setitem(cells, "train_base", lambda *a: made.append(1) or train_base(*a))
    with ThreadPoolExecutor(2) as pool:
        folder, again = pool.map(lambda _: cached_base(TEXTS), range(2))
    assert folder == again == cached_base(list(TEXTS)) and len(made) == 1
    other = cached_base([TEXTS[0] + TEXTS[1], *TEXTS[2:]])
    monkeypatch.setitem(cells, "seed", 1)
    assert len({folder, other, cached_base(TEXTS)}) == 3 == len(made)
