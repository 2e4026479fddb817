"""What holds for any text, any row and any file: adapters, template, filters and splits (hypothesis)."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings

from rlhf_utils.data import prepare
from rlhf_utils.data.filters import conversation_key, prompt_key
from rlhf_utils.data.prepare import IN_TEST
from rlhf_utils.data.schemas import SCHEMAS, RowDropped, clean, read_rows
from rlhf_utils.data.sources import Rows
from rlhf_utils.data.splits import SPLITS, split_of
from rlhf_utils.evaluation.statistics import proportion_interval, win_rate
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.ppo.objective import advantages_and_returns, masked_whiten
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.settings.template import ASSISTANT, HUMAN, NEXT_ASSISTANT, NEXT_HUMAN, TEMPLATE, TEMPLATES

settings.register_profile(
    "here", deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("here")

# Half a surrogate pair is what JSON can spell and UTF-8 cannot.
TEXT = st.text(st.characters(codec=None), max_size=40)
PLAIN = st.text(st.characters(codec="utf-8"), max_size=40)
# Pieces that mean something to the template, in any order.
SPOKEN = st.lists(
    st.sampled_from(
        [HUMAN, ASSISTANT, NEXT_HUMAN, NEXT_ASSISTANT, " ", "\n", "\r\n", "\0", "why?", "Because.", "Human"]
    ),
    max_size=9,
).map("".join)
VALUE = st.one_of(
    TEXT, SPOKEN, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4),
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": TEXT}),
             max_size=4),
    st.dictionaries(st.sampled_from(["text", "score"]), st.lists(st.one_of(TEXT, st.integers()), max_size=3)),
    st.lists(st.one_of(TEXT, st.integers(), st.none()), max_size=3),
)  # fmt: skip


class Words:
    """A tokenizer of white space: a token is a word."""

    def __call__(self, texts, **_):
        return {"input_ids": [text.split() for text in texts]}


class TestTemplate:
    @given(SPOKEN | PLAIN)
    @example(f"{HUMAN} a{NEXT_ASSISTANT} b{NEXT_HUMAN} c")
    def test_the_prompt_within_what_is_formatted_is_the_prompt(self, text):
        prompt = TEMPLATE.normal(text)
        if TEMPLATE.normal(prompt) == prompt:
            assert TEMPLATE.normal(TEMPLATE.format(prompt)) == prompt
        assert TEMPLATE.format(prompt) == TEMPLATE.format(f" {prompt}\n")

    @given(SPOKEN | PLAIN, SPOKEN | PLAIN)
    def test_a_text_is_its_prompt_and_its_completion(self, prompt, response):
        for template in TEMPLATES.values():
            text = template.text(prompt, response)
            assert text.startswith(template.format(prompt)) and not template.format(prompt).endswith(" ")
            assert template.response(text[len(template.format(prompt)) :]) == template.response(response)
            assert template.response(template.response(response)) == template.response(response)


class TestAdapters:
    @pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.accepts)
    @given(data=st.data())
    @settings(max_examples=60)
    def test_a_row_becomes_an_example_or_is_dropped_with_a_reason(self, schema, data):
        row = {name: data.draw(VALUE, label=name) for name in columns(schema)}
        try:
            read = schema.read(row)
        except RowDropped as reason:
            assert str(reason)
            return
        texts = [text for text in (read.prompt, read.chosen, read.rejected) if text is not None]
        assert read.prompt.strip() == read.prompt != "" and all(text.strip() for text in texts)
        assert (read.chosen is not None) == (schema.kind in ("pairs", "demonstrations"))
        assert (read.rejected is not None) == (schema.kind == "pairs")
        # Tokenizers and files are UTF-8.
        assert all(text.encode("utf-8").decode("utf-8") == text for text in texts)

    @given(TEXT)
    def test_clean_text_is_clean(self, text):
        found = clean(text)
        assert found is None or (found.encode() and clean(found) == found and "\r\n" not in found)

    @given(PLAIN, PLAIN, PLAIN)
    def test_the_same_pair_in_three_forms_is_the_same_pair(self, prompt, chosen, rejected):
        texts = [clean(text) for text in (prompt, chosen, rejected)]
        assume(all(text and HUMAN not in text and ASSISTANT not in text for text in texts))
        prompt, chosen, rejected = texts
        human = {"role": "user", "content": prompt}
        forms = [
            {"prompt": prompt, "chosen": chosen, "rejected": rejected},
            {"chosen": TEMPLATE.text(prompt, chosen), "rejected": TEMPLATE.text(prompt, rejected)},
            {
                name: [human, {"role": "assistant", "content": text}]
                for name, text in (("chosen", chosen), ("rejected", rejected))
            },
        ]
        for form in forms:
            (read,) = read_rows([form], "rows")[1]
            assert (read.prompt, read.chosen, read.rejected) == (prompt, chosen, rejected)


def columns(schema) -> list[str]:
    """Some columns that this schema, and none before it, takes."""
    offers = [
        ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"), ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"), ("title", "selftext", "answers"), ("messages",), ("instruction", "input", "output"),
        ("text", "label"), ("prompt",),
    ]  # fmt: skip
    return next(list(names) for names in offers if next((s for s in SCHEMAS if s.matches(set(names))), None) is schema)


CELL = st.one_of(SPOKEN, st.sampled_from("abcdefgh"), st.none())
ROWS = st.lists(
    st.fixed_dictionaries({"prompt": CELL, "chosen": CELL, "rejected": CELL}),
    min_size=1,
    max_size=25,
)
SHARES = {"sft": 0.4, "reward": 0.3, "ppo": 0.1, "development": 0.1, "evaluation": 0.1, "judge": 0.0}


def prepared(train, test=None, seed=0, **given):
    """The splits of these rows, or None where so few of them are usable that a split stays empty."""
    limits = DataSettings(max_prompt_tokens=6, max_response_tokens=4, shares=SHARES, **given)
    try:
        return prepare(Rows(train, test, "rows", "0"), limits, Words(), seed)
    except InputError as error:
        assert "\n" not in str(error)
        return None


# One usable row for each split, so that most draws are not refused for an empty one.
FILLER = [{"prompt": f"filler {i}", "chosen": "yes", "rejected": "no"} for i in range(60)]


class TestFiltersAndSplits:
    @given(ROWS)
    @settings(max_examples=50)
    def test_every_row_that_is_read_is_kept_or_counted(self, rows):
        found = prepared([*FILLER, *rows])
        assert found is not None
        steps = [step for step in found.report if step.split == "train"]
        assert steps[0].left == len(FILLER) + len(rows)
        for before, after in zip(steps, steps[1:], strict=False):
            assert after.dropped >= 0 and before.left - after.dropped == after.left
        assert steps[-1].left == sum(len(found.splits[name]) for name in SPLITS)
        for name in SPLITS:
            for row in found.splits[name]:
                assert len(TEMPLATE.format(row["prompt"]).split()) <= 6
                assert max(len(row[answer].split()) + 1 for answer in ("chosen", "rejected") if row.get(answer)) <= 4

    @given(ROWS, st.randoms(use_true_random=False))
    @settings(max_examples=50)
    def test_neither_the_order_of_rows_nor_repeating_them_changes_a_split(self, rows, source):
        rows = [*FILLER, *rows]
        shuffled = [*rows, *rows[:5]]
        source.shuffle(shuffled)
        one, other = prepared(rows), prepared(shuffled)
        assert {n: list(one.splits[n]) for n in SPLITS} == {n: list(other.splits[n]) for n in SPLITS}

    @given(ROWS, st.integers(0, 3))
    @settings(max_examples=50)
    def test_a_conversation_is_in_one_split_and_not_in_train_and_test(self, rows, seed):
        found = prepared([*FILLER, *rows], seed=seed)
        places = {}
        for name in SPLITS:
            for row in found.splits[name]:
                places.setdefault(conversation_key(row["prompt"]), set()).add(name)
        assert all(len(names) == 1 for names in places.values())
        # The same rows as a test split leave nothing of theirs in training.
        tested = prepared(FILLER, test=FILLER[:20], seed=seed)
        held_out = {prompt_key(row["prompt"]) for row in FILLER[:20]}
        assert {prompt_key(row["prompt"]) for row in tested.splits["evaluation"]} == held_out
        for name in set(SPLITS) - {"evaluation"}:
            assert not {prompt_key(row["prompt"]) for row in tested.splits[name]} & held_out
        assert tested.report.dropped("train")[IN_TEST] == 20

    @given(PLAIN, st.integers(0, 5))
    def test_the_split_depends_on_the_first_turn_alone(self, prompt, seed):
        name = split_of(prompt, SHARES, seed)
        assert name == split_of(f"  {prompt}\n", SHARES, seed) == split_of(prompt.casefold(), SHARES, seed)
        assert name == split_of(f"{prompt}{NEXT_ASSISTANT} yes{NEXT_HUMAN} and then?", SHARES, seed)
        alone = {each: float(each == name) for each in SPLITS}
        assert split_of(prompt, alone, seed) == name

    def test_shares_are_kept_up_to_chance(self):
        counts = {name: 0 for name in SPLITS}
        for i in range(4000):
            counts[split_of(f"question {i}", SHARES, 0)] += 1
        for name, share in SHARES.items():
            assert abs(counts[name] / 4000 - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


class TestFigures:
    @given(st.integers(0, 500), st.integers(1, 500))
    def test_an_interval_of_a_share_holds_it(self, right, more):
        total = max(right, more)
        found = proportion_interval(right, total)
        low, high = found.as_list()
        assert 0 <= low <= right / total <= high <= 1

    @given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
    def test_what_one_wins_the_other_loses(self, pairs):
        a, b = ([float(pair[i]) for pair in pairs] for i in (0, 1))
        one, other = win_rate(a, b), win_rate(b, a)
        assert one["wins"] + one["losses"] + one["ties"] == len(pairs)
        assert (one["wins"], one["losses"]) == (other["losses"], other["wins"])
        assert one["rate"] + other["rate"] == pytest.approx(1) and 0 <= one["ci95"][0] <= one["ci95"][1] <= 1
        assert 0 <= one["sign_test_p"] <= 1 and one["sign_test_p"] == pytest.approx(other["sign_test_p"])

    @given(st.data())
    @settings(max_examples=60)
    def test_advantages_are_those_of_each_answer_alone(self, data):
        """Padding and neighbours change nothing, and lambda 1 gives returns of the discounted rewards."""
        lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
        numbers = st.floats(-5, 5, width=32)
        width = max(lengths)
        rewards, values = (
            torch.tensor([data.draw(st.lists(numbers, min_size=width, max_size=width)) for _ in lengths])
            for _ in range(2)
        )
        mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        gamma, decay = data.draw(st.sampled_from([0.9, 1.0])), data.draw(st.sampled_from([0.0, 0.95, 1.0]))
        advantages, returns = advantages_and_returns(rewards * mask, values * mask, mask, gamma, decay)
        for row, length in enumerate(lengths):
            alone = slice(row, row + 1), slice(0, length)
            single, own = advantages_and_returns(rewards[alone], values[alone], mask[alone], gamma, decay)
            assert torch.allclose(advantages[alone], single, atol=1e-5) and torch.allclose(
                returns[alone], own, atol=1e-5
            )
            if decay == 1.0:
                discounted = sum(gamma**i * rewards[row, i] for i in range(length))
                assert own[0, 0].item() == pytest.approx(float(discounted), abs=1e-4)
        assert not advantages[~mask].any()
        whitened = masked_whiten(advantages, mask)
        assert whitened.isfinite().all()
