"""Out of memory: half the rows at once, and the same result."""

import pytest
import torch
from tiny import CPU, one_thread, save_tiny, tiny_model, tiny_trainer, token_rows, without_timing  # noqa: F401
from tiny_sft import sft

from rlhf_utils.models.generation import left_padded, sample
from rlhf_utils.models.loading import load_reward_model
from rlhf_utils.platforms import memory
from rlhf_utils.platforms.errors import TrainingError
from rlhf_utils.platforms.memory import fitting
from rlhf_utils.rewards.reward_model import class_logits

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other call"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(memory, "_known", {})


def limited(module, most, error=ERRORS[0], after=0):
    """Make `module` fail with more than `most` rows, from its call number `after` on; returns the rows it computed."""
    seen = []

    def check(_, arguments, named):
        rows = len(named.get("input_ids", arguments[0] if arguments else None))
        if len(seen) >= after and rows > most:
            raise type(error)(*error.args)
        seen.append(rows)

    module.register_forward_pre_hook(check, with_kwargs=True)
    return seen


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:20])
def test_one_row_that_does_not_fit_is_told_what_helps(error):
    def attempt(size):
        raise error

    with pytest.raises(TrainingError, match=r"out of memory with 1 rows at once .*gradient_checkpointing"):
        fitting("a part", 4, attempt)
    with pytest.raises(KeyError):  # any other error is not ours
        fitting("a part", 4, lambda size: {}["x"])


def test_sizes_divide_the_batch_and_nothing_is_kept_alive():
    import weakref

    held, tried = [], []

    def attempt(size):
        assert all(reference() is None for reference in held)
        graph = torch.zeros(3, requires_grad=True)
        held.append(weakref.ref(graph))
        tried.append(size)
        if size > 2:
            # A fresh one: an error that is kept keeps its traceback.
            raise type(ERRORS[0])(*ERRORS[0].args)

    fitting("a part", 12, attempt, whole=12)
    fitting("another", 9, attempt, whole=9)
    assert tried == [12, 6, 3, 1, 9, 3, 1]
    assert fitting("a part", 12, lambda size: size) == 1, "remembered"


def test_scoring_in_parts_gives_the_same_scores(policy):
    model, rows = load_reward_model(policy, CPU, fresh_head=True), token_rows([3, 9, 5, 7, 4])
    whole, seen = class_logits(model, rows, CPU), limited(model.base_model, 2)
    torch.testing.assert_close(class_logits(model, rows, CPU, batch_size=4), whole, rtol=0, atol=1e-5)
    assert seen == [2, 2, 1]


def test_sampling_in_parts_is_the_same_sampling():
    model = tiny_model(eos_nats=3.0)
    tokens, mask = left_padded(token_rows([3, 9, 5, 7, 4]), 0, "cpu")

    def sampled():
        return sample(model, tokens, mask, 12, 1.0, 0, torch.Generator().manual_seed(1), keep_hidden=True)

    whole = sampled()
    seen = limited(model.transformer, 2)
    parts = sampled()
    assert max(seen) == 2
    assert torch.equal(whole.tokens, parts.tokens) and torch.equal(whole.mask, parts.mask)
    assert torch.equal(whole.ended, parts.ended)
    for name in ("logprobs", "entropy", "hidden"):
        # Of a row that has ended `hidden` is whatever was computed until it was taken out.
        real = whole.mask if name != "hidden" else whole.mask[..., None]
        assert torch.allclose(getattr(whole, name) * real, getattr(parts, name) * real, atol=1e-5)


@pytest.mark.parametrize("change", ["out of memory", "gradient_checkpointing"])
def test_ppo_learns_the_same(policy, tmp_path, change):
    usual = tiny_trainer(policy, tmp_path / "a").train()
    other = tiny_trainer(policy, tmp_path / "b", gradient_checkpointing=change == "gradient_checkpointing")
    seen = limited(other.actor.policy.transformer, 2) if change == "out of memory" else None
    assert other.actor.policy.is_gradient_checkpointing == (change == "gradient_checkpointing")
    for line, same in zip(without_timing(other.train()), without_timing(usual), strict=True):
        for name in ("reward", "kl", "policy_loss", "value_loss", "gradient_norm", "entropy"):
            assert line[name] == pytest.approx(same[name], abs=2e-4), name
    if seen:
        assert max(seen) == 2 == memory._known["ppo learning"]


def losses(trainer):
    return {line["step"]: line["loss"] for line in trainer.state.log_history if "loss" in line}


@pytest.mark.parametrize("after", [0, 3], ids=["at once", "later"])
def test_a_trl_training_continues_with_the_same_losses(tmp_path, after):
    from rlhf_utils.runs.training import train_resumably

    # With gradient checkpointing the losses are the same too.
    usual, saving = sft(tmp_path / "usual", checkpointing=bool(after))
    train_resumably(usual, tmp_path / "usual")
    assert saving.is_gradient_checkpointing == bool(after)
    trainer, other = sft(tmp_path / "work")
    seen = limited(other.transformer, 2, ERRORS[1], after)
    train_resumably(trainer, tmp_path / "work")
    assert seen[-1] <= 2
    assert losses(trainer) == pytest.approx(losses(usual), abs=1e-4)
    assert memory._known == {"work": 2}


def test_micro_batches_hold_rows_of_like_length_of_the_batch_that_chance_drew(tmp_path):
    from rlhf_utils.runs.training import train_resumably

    def widths(train, name):
        trainer, seen = sft(tmp_path / name, micro=2)[0], []
        collate = trainer.data_collator

        def watched(rows):
            seen.append(sorted(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = watched
        train(trainer, tmp_path / name)
        return trainer, seen

    ours, sorted_rows = widths(train_resumably, "ours")
    usual, drawn = widths(lambda trainer, _: trainer.train(), "usual")
    assert losses(ours) == pytest.approx(losses(usual), abs=1e-4)
    # Twenty rows by eight: the third step of an epoch has four.
    assert sum(rows[-1] * len(rows) for rows in sorted_rows) < sum(rows[-1] * len(rows) for rows in drawn)
    steps = [slice(0, 4), slice(4, 8), slice(8, 10), slice(10, 14), slice(14, 18)]
    for step in steps:
        assert sorted(sum(sorted_rows[step], [])) == sorted(sum(drawn[step], []))
        assert all(a[0] >= b[-1] for a, b in zip(sorted_rows[step], sorted_rows[step][1:], strict=False))
