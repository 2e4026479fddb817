"""Text to tokens and back: the special tokens once, boundaries where a sampling model has them, spaces kept."""

import pytest
from architectures import TEXTS, tokenizer_of
from datasets import Dataset
from tiny import PROMPTS

from rlhf_utils.data.tokens import (
    continuations,
    continued_tokens,
    cut_tokens,
    read_tokens,
    special_tokens,
    start_tokens,
)
from rlhf_utils.runs.training import demonstration_tokens, preference_tokens
from rlhf_utils.settings.template import TEMPLATE

KINDS = ["bytes", "bytes, bos, pad", "metaspace", "metaspace, bos", "encoder"]
ENDS = [*map(TEMPLATE.completion, ["Keep it dry.", "  a film", "", "no", "x\n\ny", "<b>"])]
PAIRS = [(TEMPLATE.format(prompt), end) for prompt in PROMPTS for end in ENDS]
# Cut inside a word.
PAIRS += [("a bor", "ing film"), ("a boring", " film"), ("a", "nd"), ("good", "")]


@pytest.fixture(params=KINDS)
def tokenizer(request):
    return tokenizer_of(request.param)


def test_what_a_tokenizer_puts_around_a_text_stands_there_once(tokenizer):
    before, after = special_tokens(tokenizer)
    for text in ["a", *TEXTS, *PROMPTS]:
        (row,) = start_tokens(tokenizer, [text])
        assert row + after == tokenizer(text)["input_ids"] and row.count(tokenizer.bos_token_id) == len(before)
    written = start_tokens(tokenizer, ["<s>hello"])[0]
    assert written.count(tokenizer.bos_token_id) == 1, "a text that brings its own BOS gets no second one"


def test_an_answer_is_tokenized_as_it_stands_in_the_text_and_comes_back_whole(tokenizer):
    """Apart, Metaspace would put a second space before it."""
    for start, end in PAIRS:
        ((asked, said),) = continued_tokens(tokenizer, [start], [end])
        assert [asked] == start_tokens(tokenizer, [start]), "what a policy continues is the prompt alone"
        assert continuations(tokenizer, [asked], [said]) == [end]
        if start.endswith("Assistant:"):
            assert read_tokens(tokenizer, [start], [end])[0] == tokenizer(start + end)["input_ids"]
    begun, whole = start_tokens(tokenizer, ["a boring", "a boring film"])
    said = [*whole[len(begun) :], tokenizer.eos_token_id]
    assert continuations(tokenizer, [begun], [said]) == [" film"], "a sampled one, with its EOS"


def test_bos_stands_once_in_what_every_stage_learns_from(tokenizer):
    rows = {"prompt": ["How so?"], "chosen": ["Keep it dry."], "rejected": ["no"]}
    before, after = special_tokens(tokenizer)
    (taught,) = demonstration_tokens(Dataset.from_dict(rows), tokenizer, most=8).to_list()
    (pair,) = preference_tokens(Dataset.from_dict(rows), tokenizer).to_list()
    asked, end = start_tokens(tokenizer, [TEMPLATE.format("How so?")])[0], tokenizer.eos_token_id
    assert taught["input_ids"][: len(asked)] == asked == pair["chosen_ids"][: len(asked)]
    assert taught["input_ids"] == pair["chosen_ids"][: len(pair["chosen_ids"]) - len(after)] + [end]
    assert taught["completion_mask"] == [0] * len(asked) + [1] * (len(taught["input_ids"]) - len(asked))
    for row in (taught["input_ids"], pair["chosen_ids"], pair["rejected_ids"]):
        assert row.count(tokenizer.bos_token_id) == len(before)


def test_a_row_over_the_limit_loses_the_beginning_of_its_text_alone(tokenizer):
    before, after = special_tokens(tokenizer)
    (row,) = read_tokens(tokenizer, ["a boring film, " * 9], ["and"])
    (short,) = cut_tokens(tokenizer, [row], 12)
    assert len(short) == 12 and short[: len(before)] == before and short[len(before) :] == row[len(before) - 12 :]
    assert cut_tokens(tokenizer, [row], len(row)) == [row]
