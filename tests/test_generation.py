"""Sampling: what is kept from it is what a fresh forward pass on the bare tokens gives, whatever the batch was."""

import pytest
import torch
from tiny import CONTEXT, CPU, PROMPTS, VOCABULARY, naive_logprobs, one_thread, tiny_model, tiny_tokenizer, token_rows  # noqa: F401

from rlhf_utils.models import generation
from rlhf_utils.models.generation import answer_prompts, left_padded, sample
from rlhf_utils.settings.sections import GenerationSettings

EOS = 0
ROWS = token_rows((3, 9, 1, 14, 6, 6))
NEW = 20


@pytest.fixture(scope="module")
def model():
    """Ends after a few tokens on average, so that rows of one batch end at different times."""
    return tiny_model(eos_nats=3.5)


def draw(model, rows, seed=0, extra=0, new=NEW, temperature=0.8, **more):
    """`extra` columns of padding stand before the longest row."""
    tokens, mask = left_padded([[EOS] * extra + max(rows, key=len), *rows], EOS, "cpu")
    generator = torch.Generator().manual_seed(seed)
    return sample(model, tokens[1:], mask[1:], new, temperature, EOS, generator, **more)


@pytest.mark.parametrize("rows, extra", [(ROWS, 0), (ROWS, CONTEXT), (ROWS[2:3], 1)])
def test_kept_numbers_are_those_of_a_fresh_forward_pass_whatever_the_batch(model, rows, extra):
    sampled = draw(model, rows, seed=3, extra=extra, keep_hidden=True)
    for i, row in enumerate(rows):
        real = sampled.mask[i]
        expected = naive_logprobs(model, row, sampled.tokens[i][real].tolist(), 0.8)
        for name, values in zip(("logprobs", "entropy", "hidden"), expected, strict=True):
            found = getattr(sampled, name)[i]
            torch.testing.assert_close(found[real].double(), values.double(), rtol=0, atol=1e-4)
            assert name == "hidden" or not found[~real].any()
    lengths = sampled.mask.sum(dim=1)
    assert len(rows) == 1 or lengths.min() <= NEW // 3 and lengths.max() >= NEW // 2, "early and late ends"


def test_an_answer_stops_at_its_first_eos_which_belongs_to_it(model):
    sampled = draw(model, ROWS * 10, seed=1)
    lengths = sampled.mask.sum(dim=1)
    assert 0 < sampled.ended.sum() < len(lengths), "both kinds of answer have to occur here"
    for tokens, mask, length, ended in zip(sampled.tokens, sampled.mask, lengths, sampled.ended, strict=True):
        assert mask[:length].all() and not mask[length:].any()
        assert (tokens[:length] == EOS).sum() == int(ended)
        assert (tokens[length - 1] == EOS) == ended
        assert ended or length == NEW
        assert (tokens[length:] == EOS).all()
    assert sampled.tokens.shape[1] == lengths.max()


def test_an_answer_can_be_empty_or_never_end():
    sampled = draw(tiny_model(eos_nats=60.0), ROWS)
    assert sampled.tokens.tolist() == [[EOS]] * len(ROWS) and sampled.ended.all()
    settings = GenerationSettings(max_new_tokens=NEW)
    answers = answer_prompts(tiny_model(eos_nats=60.0), tiny_tokenizer(), ["a?"], settings, CPU, seed=0)
    assert answers == [generation.Answer("", [EOS], True)]
    sampled = draw(tiny_model(eos_nats=-60.0), ROWS)
    assert sampled.mask.all() and sampled.tokens.shape == (len(ROWS), NEW) and not sampled.ended.any()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_come_from_the_unmodified_distribution(temperature):
    """No top-k, no top-p, no repetition penalty: frequencies of 20,000 draws are the softmax's, down to its tail."""
    model, row, draws = tiny_model(spread=0.12), ROWS[0], 20_000
    state = model.transformer(torch.tensor([row])).last_hidden_state[:, -1]
    expected = torch.softmax(model.lm_head(state)[0].double() / temperature, dim=-1).detach()
    uniform = torch.rand((draws, 1), generator=torch.Generator().manual_seed(0))
    chosen = generation._inverse_cdf(expected.float().expand(draws, -1), uniform)
    counts = torch.bincount(chosen, minlength=VOCABULARY).double()
    errors = (counts - draws * expected) / (draws * expected * (1 - expected)).sqrt()
    assert errors.abs().max() < 4.5
    # And `sample` draws its tokens from this very distribution.
    sampled = draw(model, [row] * 4_000, new=1, temperature=temperature)
    found = torch.bincount(sampled.tokens[:, 0], minlength=VOCABULARY).double() / 4_000
    assert (found - expected).abs().max() < 4.5 * (expected.max() / 4_000).sqrt()


def test_a_draw_at_either_end_of_the_unit_interval_gives_a_token_of_positive_probability():
    probabilities = torch.tensor([[0.0, 0.25, 0.75, 0.0]]).expand(3, -1)
    uniform = torch.tensor([[0.0], [0.25], [1 - 2**-24]])
    assert generation._inverse_cdf(probabilities, uniform).tolist() == [1, 2, 2]


def answered(model, prompts, seed=0, **settings):
    settings = GenerationSettings(**{"max_new_tokens": 12, "batch_size": 3, **settings})
    return answer_prompts(model, tiny_tokenizer(), prompts, settings, CPU, seed)


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(model):
    model.train()
    answers = answered(model, PROMPTS, 5, max_new_tokens=30)
    assert model.training and answers == answered(model.eval(), PROMPTS, 5, max_new_tokens=30)
    assert not model.training and answers != answered(model, PROMPTS, 6, max_new_tokens=30)
    for answer in answers:
        assert "<|endoftext|>" not in answer.text and answer.text == answer.text.strip()
        assert (answer.tokens[-1] == EOS) == answer.ended


def test_answers_come_in_the_order_of_the_prompts():
    """So cold that the draw does not matter: each prompt has one answer, wherever it stands and in whichever batch."""
    model = tiny_model(eos_nats=-60.0, spread=0.6)
    alone = {prompt: answered(model, [prompt], temperature=1e-4)[0] for prompt in PROMPTS}
    assert len({answer.text for answer in alone.values()}) == len(PROMPTS)
    for prompts in (PROMPTS, PROMPTS[::-1], [*PROMPTS[3:], *PROMPTS[:3], PROMPTS[1]]):
        assert answered(model, prompts, temperature=1e-4) == [alone[prompt] for prompt in prompts]


def test_every_model_is_dealt_the_same_random_numbers():
    """A model that ends at once must leave the generator where one that never ends leaves it, or the comparison of
    two models on the next batch would be one of luck."""
    states = []
    for eos_nats in (60.0, -60.0):
        generator = torch.Generator().manual_seed(9)
        tokens, mask = left_padded(ROWS, EOS, "cpu")
        sample(tiny_model(eos_nats=eos_nats), tokens, mask, NEW, 1.0, EOS, generator)
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_a_prompt_that_repeats_is_read_once_and_rows_leave_the_batch_as_they_end(monkeypatch):
    """Each row gets what it would get alone, however often ends are looked for and rows are taken out."""
    model, rows = tiny_model(eos_nats=4.5), token_rows((7, 3, 7, 5))
    rows = [*rows, rows[0], rows[3], rows[0]]
    draw(model, rows)  # the first time a model is looked at, it computes a row of its own
    seen = []
    model.transformer.register_forward_hook(
        lambda _, arguments, named, out: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    found = {}
    for every, share in ((1, 0.9), (8, 0.9), (1, 0.0), (3, 0.5)):
        monkeypatch.setitem(generation._LOOK_EVERY, "cpu", every)
        monkeypatch.setitem(generation._COMPACT_AT, "cpu", share)
        seen.clear()
        found[every, share] = draw(model, rows)
        assert seen[0] == 4, "four distinct prompts"
        if (every, share) == (1, 0.9):
            assert 4 < seen[1] <= 7 and seen[-1] < seen[1], "rows left"
    first = found.pop((1, 0.9))
    assert first.ended.any()
    for other in found.values():
        assert torch.equal(first.tokens, other.tokens) and torch.equal(first.mask, other.mask)
        torch.testing.assert_close(first.logprobs, other.logprobs, rtol=0, atol=1e-4)
    for place, row in enumerate(rows):
        alone = draw(model, [row], place=(place, len(rows)))
        assert alone.tokens[0][alone.mask[0]].tolist() == first.tokens[place][first.mask[place]].tolist()


def test_after_the_prompts_the_mask_is_a_view_of_one_that_is_made_once():
    """transformers would make it at each token, and wait for a GPU to say whether anything is masked."""
    model, masks = tiny_model(eos_nats=-9.0), []
    hook = model.transformer.register_forward_pre_hook(
        lambda _, arguments, named: masks.append(named.get("attention_mask")), with_kwargs=True
    )
    draw(model, ROWS, new=4)
    hook.remove()
    first, *later = [mask for mask in masks if mask is not None]  # a model's first check is without one
    assert first.dim() == 2 and len(later) >= 2
    assert [mask.shape[-1] for mask in later] == [first.shape[1] + step for step in range(1, len(later) + 1)]
    assert len({mask.untyped_storage().data_ptr() for mask in later if len(mask) == len(ROWS)}) == 1
    assert torch.equal(later[0][:, 0, 0, : first.shape[1]] == 0, first)
