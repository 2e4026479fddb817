"""What holds for any text, row and file: adapters, template, filters and splits (hypothesis)."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings
from test_data_prepare import WordTokenizer

from rlhf_utils.data.prepared import PROMPTED, conversation_key, prepare
from rlhf_utils.data.sources import Rows, clean, read_rows
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.settings.template import ASSISTANT, HUMAN, NEXT_ASSISTANT, NEXT_HUMAN, TEMPLATE, TEMPLATES

settings.register_profile(
    "here", deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("here")

# Half a surrogate pair is what JSON can spell and UTF-8 cannot.
TEXT = st.text(st.characters(codec=None), max_size=40)
PLAIN = st.text(st.characters(codec="utf-8"), max_size=40)
# Pieces that mean something to the template, in any order.
PIECES = [HUMAN, ASSISTANT, NEXT_HUMAN, NEXT_ASSISTANT, " ", "\n", "\r\n", "\0", "why?", "Because.", "Human"]
SPOKEN = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
ROLES = st.sampled_from(["user", "assistant", "system", "x"])
VALUE = st.one_of(
    TEXT, SPOKEN, st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=4),
    st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXT}), max_size=4),
    st.dictionaries(st.sampled_from(["text", "score"]), st.lists(st.one_of(TEXT, st.integers()), max_size=3)),
    st.lists(st.one_of(TEXT, st.integers(), st.none()), max_size=3),
)  # fmt: skip


@given(SPOKEN | PLAIN, SPOKEN | PLAIN)
@example(f"{HUMAN} a{NEXT_ASSISTANT} b{NEXT_HUMAN} c", "")
def test_the_prompt_within_what_is_formatted_is_the_prompt_and_the_response_comes_back(text, response):
    prompt = TEMPLATE.normal(text)
    if TEMPLATE.normal(prompt) == prompt:
        assert TEMPLATE.normal(TEMPLATE.format(prompt)) == prompt
    assert TEMPLATE.format(prompt) == TEMPLATE.format(f" {prompt}\n")
    for template in TEMPLATES.values():
        whole = template.text(text, response)
        assert whole.startswith(template.format(text)) and not template.format(text).endswith(" ")
        assert template.response(whole[len(template.format(text)) :]) == template.response(response)
        assert template.response(template.response(response)) == template.response(response)


COLUMNS = [
    ("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"), ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"), ("title", "selftext", "answers"), ("text", "label"),
]  # fmt: skip


@pytest.mark.parametrize("columns", COLUMNS)
@given(data=st.data())
@settings(max_examples=60)
def test_a_row_becomes_an_example_or_is_dropped_with_a_reason(columns, data):
    kind, examples, dropped = read_rows([{name: data.draw(VALUE, label=name) for name in columns}], "rows")
    assert len(examples) + dropped.total() == 1 and all(dropped)
    for read in examples:
        texts = [text for text in (read.prompt, read.chosen, read.rejected) if text is not None]
        assert read.prompt.strip() == read.prompt != "" and all(text.strip() for text in texts)
        assert len(texts) == (3 if kind == "pairs" else 1)
        # Tokenizers and files are UTF-8.
        assert all(clean(text.encode("utf-8").decode("utf-8")) == text for text in texts)


CELL = st.one_of(SPOKEN, st.sampled_from("abcdefgh"), st.none())
ROWS = st.lists(st.fixed_dictionaries({"prompt": CELL, "chosen": CELL, "rejected": CELL}), min_size=1, max_size=25)
SHARES = {"sft": 0.4, "reward": 0.3, "ppo": 0.1, "development": 0.1, "evaluation": 0.1, "judge": 0.0}
# Usable rows for each split, so that no draw is refused for an empty one.
FILLER = [{"prompt": f"filler {i}", "chosen": "yes", "rejected": "no"} for i in range(60)]


def prepared(rows, seed):
    limits = DataSettings(max_prompt_tokens=6, max_response_tokens=4, shares=SHARES)
    return prepare(Rows(rows, None, "rows"), limits, WordTokenizer(), seed)


@given(ROWS, st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_rows_are_kept_in_one_split_or_counted_whatever_their_order(rows, seed, source):
    rows = [*FILLER, *rows]
    found, shuffled = prepared(rows, seed), [*rows, *rows[:5]]
    source.shuffle(shuffled)
    again = prepared(shuffled, seed).splits
    assert {n: list(s) for n, s in found.splits.items()} == {n: list(s) for n, s in again.items()}
    steps = found.report["train"]
    assert steps[0]["left"] == len(rows)
    for before, after in zip(steps, steps[1:], strict=False):
        assert after["dropped"] >= 0 and before["left"] - after["dropped"] == after["left"]
    kept = [(name, row) for name, split in found.splits.items() for row in split]
    assert steps[-1]["left"] == len(kept)
    places = {}
    for name, row in kept:
        assert len(TEMPLATE.format(row["prompt"]).split()) <= 6
        assert max(len(row[answer].split()) + 1 for answer in ("chosen", "rejected")) <= 4
        assert places.setdefault(conversation_key(row["prompt"]), name) == name


# Beginnings that many texts share, and texts that are no longer than a prompt.
FILM = st.lists(st.sampled_from("it was a film THE worst best of all".split()), min_size=1, max_size=12).map(" ".join)
FILMS = st.lists(st.fixed_dictionaries({"text": FILM, "label": st.sampled_from([0, 1])}), min_size=1, max_size=25)
FILM_FILLER = [{"text": f"{i} film {i}", "label": i % 2} for i in range(60)]


@pytest.mark.parametrize("with_test", [False, True])
@given(FILMS, FILMS, st.integers(0, 3))
@settings(max_examples=30)
def test_no_prompt_that_is_cut_from_texts_is_in_two_splits_nor_any_text(with_test, films, others, seed):
    limits = DataSettings(min_text_characters=0, prompt_tokens=(1, 3), shares=SHARES)
    rows, test = [*FILM_FILLER, *films, *(() if with_test else others)], others if with_test else None
    found = prepare(Rows(rows, test, "films"), limits, WordTokenizer(), seed, TEMPLATES["continuation"])
    prompts, texts = {}, {}
    for name, split in found.splits.items():
        for row in split:
            assert row["text"].startswith(row["prompt"])
            assert texts.setdefault(conversation_key(row["text"]), name) == name
            if name in PROMPTED:
                assert prompts.setdefault(conversation_key(row["prompt"]), name) == name
    dropped = sum(step["dropped"] for steps in found.report.values() for step in steps)
    assert sum(map(len, found.splits.values())) + dropped == len(rows) + len(test or [])
