"""Whether a CPU computes a model in bf16: measured, and here measured again."""

import contextlib
import shutil
from dataclasses import replace

import pytest
import torch
from tiny import CPU, adapted, one_thread, save_tiny, tiny_trainer, without_timing  # noqa: F401
from tiny_sft import sft
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_utils.models import generation, precision
from rlhf_utils.models.language_model import Episodes, answer_logprobs
from rlhf_utils.models.loading import load_policy
from rlhf_utils.models.precision import rounded_once
from rlhf_utils.platforms import runtime
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.ppo.learner import SAME
from rlhf_utils.ppo.policies import learning_weights
from rlhf_utils.runs import training
from rlhf_utils.runs.training import head_in_fp32, score_in_fp32, train_resumably


@pytest.fixture(scope="module")
def wide() -> GPT2LMHeadModel:
    """Two blocks of GPT-2's own width."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=2, vocab_size=500, n_positions=64)).eval()


@pytest.mark.parametrize("learning", [False, True])
def test_bf16_is_chosen_only_where_a_pass_is_faster(wide, learning):
    chosen = precision.fastest(CPU, wide, learning)
    assert chosen == precision.fastest(CPU, wide, learning), "decided once"
    (slow, exact), (fast, rounded) = (
        min((precision._pass(replace(CPU, precision=name), wide, learning) for _ in range(3)), key=lambda one: one[0])
        for name in ("fp32", "bf16")
    )
    # Not at the threshold itself, where two measurements may differ.
    if slow > 1.6 * fast:
        assert chosen.precision == "bf16"
    elif slow < 1.1 * fast:
        assert chosen == CPU
    assert 0 < (rounded - exact).square().mean().sqrt() < precision._SAME * exact.square().mean().sqrt()
    assert all(p.grad is None for p in wide.parameters()) and not wide.training


def test_what_was_measured_on_this_machine_decides_in_every_process(wide, monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_measured", {})
    precision.fastest(CPU, wide)
    (kept,) = (tmp_path / "precision").glob("*.json")
    # Two rounds of five in which something else kept the machine busy do not decide.
    fast, busy = [3.0] * 5, [1.2] * 3 + [9.0] * 2
    for ratios, error, chosen in ((fast, 0.01, "bf16"), (busy, 0.01, "fp32"), (fast, 0.2, "fp32")):
        write_json(kept, read_json(kept) | {"fp32_over_bf16_seconds": ratios, "error": error})
        precision._measured.clear()  # as in a new process
        assert precision.fastest(CPU, wide).precision == chosen


def test_what_learns_decides_and_not_how_many_weights_it_has(wide, monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_measured", {})
    monkeypatch.setattr(precision, "_ROUNDS", 1)
    precision.fastest(CPU, wide, learning=True)
    for few in (2, 3):  # as adapters of other ranks
        for place, weight in enumerate(wide.parameters()):
            weight.requires_grad_(place < few)
        precision.fastest(CPU, wide, learning=True)
    wide.requires_grad_(True)
    assert len([*(tmp_path / "precision").glob("*.json")]) == 2


def test_what_is_measured_is_of_these_threads_and_this_pytorch(monkeypatch):
    names, threads = {runtime.machine_name("x"), runtime.machine_name("y")}, torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    names.add(runtime.machine_name("x"))
    torch.set_num_threads(threads)
    monkeypatch.setattr(torch, "__version__", "another")
    names.add(runtime.machine_name("x"))
    assert len(names) == 4


def test_where_it_is_chosen_log_probabilities_stay_within_the_check_of_ppo(wide, monkeypatch):
    monkeypatch.setattr(precision, "FASTER", 0.0)  # bf16, fast or not
    monkeypatch.setattr(precision, "_measured", {})
    half = precision.fastest(CPU, wide)
    assert half.precision == "bf16" and half.autocast_dtype == torch.bfloat16
    episodes = Episodes.of([[1, 2, 3]] * 4, [[5, 6, 7, 8]] * 4, 0, "cpu")
    with torch.no_grad():
        exact = answer_logprobs(wide, episodes, 1.0)
        with half.autocast():
            rounded = answer_logprobs(wide, episodes, 1.0)
    assert 0 < (exact - rounded).square().mean().sqrt() < SAME["bf16"]


def test_small_models_and_other_devices_are_left_alone(tmp_path, wide, monkeypatch):
    monkeypatch.setattr(precision, "FASTER", 0.0)
    monkeypatch.setattr(precision, "_measured", {})
    assert precision.fastest(CPU, load_policy(save_tiny(tmp_path / "policy"), CPU)) == CPU
    for change in ({"precision": "bf16"}, {"kind": "cuda"}, {"kind": "cuda", "precision": "fp16"}, {"fixed": True}):
        assert precision.fastest(replace(CPU, **change), wide) == replace(CPU, **change)
    assert not precision._measured


def test_where_it_is_chosen_trainers_learn_in_it_from_fp32_weights_and_logits_and_resume_exactly(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    for name, value in (("_measured", {}), ("_LEAST_WIDTH", 0), ("FASTER", 0.0)):
        monkeypatch.setattr(precision, name, value)

    def losses(work, same):
        monkeypatch.setattr(precision, "_SAME", same)
        precision._measured.clear()
        trainer, model = sft(tmp_path / work, offset=-100.0)
        head_in_fp32(model)
        precision.fastest(CPU, model, learning=True)  # which computes in both
        seen = set()
        model.transformer.h[0].mlp.c_fc.register_forward_hook(lambda _, arguments, output: seen.add(output.dtype))
        train_resumably(trainer, tmp_path / work)
        trainer.evaluate(trainer.train_dataset)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return seen, losses_of(trainer)

    exact, rounded = losses("fp32", same=0.0), losses("bf16", same=1.0)
    # Logits near -100 have steps of half a nat in bf16.
    assert (exact[0], rounded[0]) == ({torch.float32}, {torch.bfloat16}) and exact[1] != rounded[1]
    assert rounded[1] == pytest.approx(exact[1], abs=0.1)
    for newer in (4, 5):
        shutil.rmtree(tmp_path / "bf16" / f"checkpoint-{newer}")
    assert losses("bf16", same=1.0) == rounded


def test_frozen_weights_are_rounded_once_and_every_number_stays(tmp_path, monkeypatch):
    policy, how = save_tiny(tmp_path / "policy"), {"method": "lora", "precision": "bf16"}
    trainer = tiny_trainer(policy, tmp_path / "once", **how)
    model, exact = trainer.policy(), learning_weights(trainer.actor)
    weights = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    with rounded_once(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}, "only under autocast"
    with trainer.accelerator.autocast(), rounded_once(model):
        rounded = {name for name, p in weights.items() if p.dtype == torch.bfloat16}
    assert rounded == {name for name in weights if ".c_" in name}  # not embeddings, norms and the head
    assert {p.dtype for p in model.parameters()} == {torch.float32} and exact.keys().isdisjoint(weights)
    history = trainer.train()
    model(torch.tensor([[1, 2, 3]]))  # as ever, also outside of autocast
    monkeypatch.setattr(generation, "rounded_once", contextlib.nullcontext)
    usual = tiny_trainer(policy, tmp_path / "usual", **how).train()
    assert without_timing(history) == without_timing(usual)


def test_a_training_goes_on_in_the_precision_that_it_began_in(tmp_path, monkeypatch):
    """The cache that says which is faster may be gone, or be another machine's."""
    monkeypatch.setattr(training, "fastest", lambda device, model, learning: replace(device, precision="bf16"))
    begun, straight = (sft(tmp_path / name)[0] for name in ("begun", "straight"))
    for trainer, work in ((begun, tmp_path / "begun"), (straight, tmp_path / "straight")):
        train_resumably(trainer, work)
    for newer in (4, 5):
        shutil.rmtree(tmp_path / "begun" / f"checkpoint-{newer}")
    monkeypatch.setattr(training, "fastest", lambda device, model, learning: device)
    again, model = sft(tmp_path / "begun")
    passes = []
    model.transformer.register_forward_hook(lambda _, arguments, output: passes.append(output.last_hidden_state))
    train_resumably(again, tmp_path / "begun")
    assert len(passes) == 3, "from the checkpoint of the second of five steps"
    assert losses_of(again) == losses_of(straight)
    train_resumably(anew := sft(tmp_path / "anew")[0], tmp_path / "anew")
    assert losses_of(anew) != losses_of(straight), "or nothing was computed in bf16"


def losses_of(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("adapter", [False, True])
def test_a_classifier_that_learns_in_bf16_gives_its_logits_in_fp32(adapter):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=32, n_head=2, num_labels=1, pad_token_id=0))
    if adapter:
        model = adapted(model, "SEQ_CLS")
    score_in_fp32(model)
    with replace(CPU, precision="bf16").autocast():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert any(p.grad is not None for name, p in model.named_parameters() if "score" in name)


@pytest.fixture
def products_as_usual(monkeypatch, tmp_path):
    """PyTorch's own way to multiply, and an empty cache."""
    before, flash = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_flash_sdp(True)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "products"
    torch.set_float32_matmul_precision(before)
    torch.backends.cuda.enable_flash_sdp(flash)


def test_products_are_onednns_where_they_are_faster_and_exact(products_as_usual):
    left, right = torch.randn(300, 768), torch.randn(768, 500)
    runtime._multiply_fast.__wrapped__()
    (kept,) = products_as_usual.glob("*.json")
    found = read_json(kept)
    chosen = found["usual_seconds"] > runtime.FASTER * found["onednn_seconds"] and found["onednn_error"] < 1e-5
    assert torch.get_float32_matmul_precision() == ("medium" if chosen else "highest")
    assert torch.backends.cuda.flash_sdp_enabled() != chosen
    # On CPUs with AMX oneDNN would round to bf16, which has 8 bits, and is not chosen for that.
    exact = left.double() @ right.double()
    assert (left @ right - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("usual", "error", "precision"), [(2.0, 1e-7, "medium"), (1.2, 1e-7, "highest"), (3.0, 3e-3, "highest")]
)
def test_what_was_measured_decides_how_products_are_made(products_as_usual, usual, error, precision):
    runtime._multiply_fast.__wrapped__()
    (kept,) = products_as_usual.glob("*.json")
    write_json(kept, {"usual_seconds": usual, "onednn_seconds": 1.0, "onednn_error": error})
    torch.set_float32_matmul_precision("highest")
    runtime._multiply_fast.__wrapped__()
    assert torch.get_float32_matmul_precision() == precision


def test_a_choice_of_the_users_own_is_left_and_so_is_everything_without_a_cache(products_as_usual, monkeypatch):
    torch.set_float32_matmul_precision("high")
    runtime._multiply_fast.__wrapped__()
    assert torch.get_float32_matmul_precision() == "high" and not products_as_usual.exists()
    torch.set_float32_matmul_precision("highest")
    products_as_usual.parent.write_text("a file, where the folder should be")
    runtime._multiply_fast.__wrapped__()
    assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cuda.flash_sdp_enabled()
