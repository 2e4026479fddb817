"""One row of any known form of dataset becomes one `Example`. The form is recognized from the columns alone.

A row that cannot be used is dropped with a reason, never an error: real data has empty cells, numbers where text should
be, and dialogues that stop in the middle.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.template import ASSISTANT, HUMAN, NEXT_ASSISTANT, NEXT_HUMAN, TEMPLATE

Kind = Literal["pairs", "demonstrations", "prompts", "labelled"]

EMPTY = "empty or not text"
NO_ANSWER_TURN = f'no "{ASSISTANT}" turn'
NO_ANSWER_AT_END = "dialogue does not end with an answer"
EARLIER_DIFFERENCE = "dialogues differ before the last answer"
NO_PREFERENCE = "no clear preference"
UNKNOWN_LABEL = "label not understood"
UNKNOWN_ROLE = "conversation not understood"
NO_RESPONSE = "response begins with another turn"


@dataclass(frozen=True, slots=True)
class Example:
    """One row in normal form.

    prompt: normal form of `Template`; of a labelled row the text itself. chosen: the better response, or the only one.
    rejected: the worse response of a pair. extra: what a form knows besides, such as `label` or the responses' scores.
    cut: whether a response ran on with a further turn, which was cut off.
    """

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    cut: bool = False


class RowDropped(Exception):
    """This row cannot be used; the message is the reason it is counted under."""


@dataclass(frozen=True)
class Schema:
    """A form of dataset.

    columns: what its rows have, alternatives separated by |. without: columns that make it another form, or one with a
    column missing, which has to be said. votes: how a row of this form becomes one with prompt, chosen, and rejected.
    """

    kind: Kind
    columns: str
    without: str = ""
    note: str = ""
    votes: Callable[[dict], dict] | None = None

    @property
    def accepts(self) -> str:
        return f"({self.columns}){self.note}"

    def matches(self, found: set[str]) -> bool:
        names = [set(group.split("|")) for group in self.columns.split(", ")]
        return all(found & group for group in names) and not found & set(self.without.split("|"))


def recognise(columns: Iterable[str], where: str) -> Schema:
    """The schema for these columns; `InputError` names the columns found and every accepted set."""
    columns = [str(column) for column in columns]
    for schema in SCHEMAS:
        if schema.matches(set(columns)):
            return schema
    accepted = "; ".join(schema.accepts for schema in SCHEMAS)
    raise InputError(
        f"{where}: columns found: {shown(columns)}. Accepted: {accepted}. Rename the columns to one of these"
    )


def read_rows(rows: list[dict], where: str) -> tuple[Kind, list[Example], Counter]:
    """Recognize and read rows: the kind, the examples in row order, the number of dropped rows by reason."""
    schema = recognise(dict.fromkeys(key for row in rows for key in row), where)
    examples, dropped = [], Counter()
    for row in rows:
        try:
            row = _with_lists(row)
            examples.append(_labelled(row) if schema.kind == "labelled" else _example(schema, row))
        except RowDropped as reason:
            dropped[str(reason)] += 1
    return schema.kind, examples, dropped


def shown(names: Iterable[str], limit: int = 12) -> str:
    """Column names for a message: control characters escaped, long names and long lists cut."""
    names = [repr(str(name))[1:-1] for name in names]
    cut = [name if len(name) <= 40 else name[:39] + "…" for name in names[:limit]]
    return (", ".join(cut) or "none") + (f" and {len(names) - limit} more" if len(names) > limit else "")


def clean(value: Any) -> str | None:
    """Text of a cell: line ends made \\n, spaces at both ends removed. None for what is empty or not text."""
    if not isinstance(value, str):
        return None
    # JSON can spell half a surrogate pair, which neither a tokenizer nor a UTF-8 file accepts.
    value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value.replace("\r\n", "\n").strip() or None


def _text(value: Any) -> str:
    if (text := clean(value)) is None:
        raise RowDropped(EMPTY)
    return text


def _whole(value: Any) -> int | None:
    """A whole number, also as text (CSV) or as a float (a column with gaps); None for anything else."""
    with suppress(TypeError, ValueError, OverflowError):
        return int(float(value)) if float(value).is_integer() else None


# Reading a row: its responses, what stands before them, and which is the better one.

_PROMPTS = "prompt|instruction|question"
_RESPONSES = "response|completion|answer|output"
_LABELS = {"negative": 0, "neg": 0, "positive": 1, "pos": 1}
_DELETED = {"[removed]", "[deleted]", "[deleted by user]"}


def _first(row: dict, names: str) -> Any:
    return next((row[name] for name in names.split("|") if name in row), None)


def _labelled(row: dict) -> Example:
    text, label = _text(_first(row, "text|review")), _first(row, "label|sentiment")
    number = _LABELS.get(label.strip().casefold(), _whole(label)) if isinstance(label, str) else _whole(label)
    if number is None or number < 0:
        raise RowDropped(UNKNOWN_LABEL)
    return Example(text, extra={"label": number})


def _example(schema: Schema, row: dict) -> Example:
    row = schema.votes(row) if schema.votes else row
    whole = not row.keys() & set(_PROMPTS.split("|"))
    cells = {
        "pairs": [row.get("chosen"), row.get("rejected")],
        "demonstrations": [_first(row, f"messages|{_RESPONSES}")],
        "prompts": [],
    }[schema.kind]
    turns = [_turn(cell, whole) for cell in cells]
    contexts = {context for context, _ in turns}
    if len(contexts) > 1:
        raise RowDropped(EARLIER_DIFFERENCE)
    prompt = "".join(contexts) or _prompt(_first(row, _PROMPTS))
    if schema.kind == "demonstrations" and (given := clean(_first(row, "input|context"))):
        prompt = f"{prompt}\n\n{given}"
    responses = [_alone(response) for _, response in turns]
    return Example(
        prompt, *(text for text, _ in responses), extra=row.get("votes", {}), cut=any(c for _, c in responses)
    )


def _prompt(value: Any) -> str:
    """Normal form of a prompt given as text or as a list of messages."""
    prompt = _context(value) if isinstance(value, list) else TEMPLATE.normal(_text(value))
    if not prompt:
        raise RowDropped(EMPTY)
    return prompt


def _turn(value: Any, whole: bool) -> tuple[str, str]:
    """(prompt, response) of messages, or of text that is a `whole` dialogue; the prompt of a response alone is ""."""
    if isinstance(value, list):
        if not value:
            raise RowDropped(EMPTY)
        if not isinstance(value[-1], dict) or value[-1].get("role") != "assistant":
            raise RowDropped(NO_ANSWER_AT_END)
        return _context(value[:-1]), _text(value[-1].get("content"))
    if not whole:
        return "", _text(value)
    before, marker, response = _text(value).rpartition(NEXT_ASSISTANT)
    if not marker:
        raise RowDropped(NO_ANSWER_TURN)
    if NEXT_HUMAN in response:
        raise RowDropped(NO_ANSWER_AT_END)
    return _prompt(before + marker), _text(response)


def _context(messages: list) -> str:
    """The messages before a response as a prompt in normal form: a dialogue that ends with a human turn."""
    turns, system = [], ""
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise RowDropped(UNKNOWN_ROLE)
        content = _text(message.get("content"))
        if role == "system":
            system = content + "\n\n"
        elif role == "user":
            turns.append(f"{NEXT_HUMAN} {system}{content}")
            system = ""
        else:
            turns.append(f"{NEXT_ASSISTANT} {content}")
    if system or (turns and turns[-1].startswith(NEXT_ASSISTANT)):
        raise RowDropped(UNKNOWN_ROLE)
    return TEMPLATE.normal("".join(turns))


def _shp(row: dict) -> dict:
    """Stanford Human Preferences: `labels` is 1 when human_ref_A is the better response, 0 when B is."""
    better, worse = {1: "AB", 0: "BA"}.get(_whole(row.get("labels")), (None, None))
    if better is None:
        raise RowDropped(NO_PREFERENCE)
    return _ranked(row.get("history"), *((row.get(f"human_ref_{s}"), row.get(f"score_{s}")) for s in (better, worse)))


def _reddit(row: dict) -> dict:
    """A raw question with title, selftext, and answers: the highest-scored answer against the lowest-scored one."""
    title, body, answers = _text(row.get("title")), clean(row.get("selftext")), row.get("answers")
    if isinstance(answers, dict):
        columns = [answers.get("text"), answers.get("score")]
        answers = list(zip(*columns, strict=False)) if all(isinstance(column, list) for column in columns) else []
    elif isinstance(answers, list):
        answers = [(answer.get("text"), answer.get("score")) for answer in answers if isinstance(answer, dict)]
    else:
        raise RowDropped(EMPTY)
    scored = sorted(
        (score, text)
        for raw, number in answers
        if (text := clean(raw)) and text not in _DELETED and (score := _whole(number)) is not None
    )
    if not scored or scored[0][0] == scored[-1][0]:
        raise RowDropped(NO_PREFERENCE)
    prompt = f"{title}\n\n{body}" if body and body not in _DELETED else title
    return _ranked(prompt, scored[-1][::-1], scored[0][::-1])


def _ranked(prompt: Any, better: tuple[Any, Any], worse: tuple[Any, Any]) -> dict:
    votes = {"score_chosen": better[1], "score_rejected": worse[1]}
    return {"prompt": prompt, "chosen": better[0], "rejected": worse[0], "votes": votes}


_ANSWERS = "chosen|rejected"
SCHEMAS = (
    Schema("pairs", "history, human_ref_A, human_ref_B, labels", votes=_shp),
    Schema("pairs", f"{_PROMPTS}, chosen, rejected"),
    Schema("pairs", "chosen, rejected", note=f' as whole "{HUMAN} … {ASSISTANT} …" dialogues'),
    Schema("pairs", "title, answers", votes=_reddit),
    Schema("demonstrations", "messages", without=_ANSWERS),
    Schema("demonstrations", f"{_PROMPTS}, {_RESPONSES}", without=_ANSWERS),
    Schema("labelled", "text|review, label|sentiment"),
    Schema("prompts", "prompt", without=f"{_ANSWERS}|messages|answers|history|human_ref_A|human_ref_B|text|review"),
)

# How datasets mark turns: words at the beginning of a line ("Human:", "**User:**"), headings ("### Instruction:"), and
# the tokens of chat templates, wherever they stand.
_WORD = r"\*{0,2}(?:Human|User|Assistant|HUMAN|USER|ASSISTANT|<human>|<bot>) ?\*{0,2}:"
_HEADING = r"#{3} ?(?:Human|User|Assistant|Instruction|Response)[ \t]*(?::|$)"
_TOKEN = r"<[|｜]\w+[|｜]>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
# Llama's and Vicuna's end of text is also a tag of HTML: it counts where a turn or nothing follows.
_END = rf"(?:</?s>\s*)+(?=\Z|{_WORD}|{_HEADING}|{_TOKEN})"
_FURTHER = re.compile(rf"^[ \t]*(?:{_WORD}|{_HEADING})|{_TOKEN}|{_END}", re.MULTILINE)
# The marker of the response itself, which some datasets leave in front of it.
_OWN = re.compile(
    r"\s*(?:Assistant:|### ?(?:Response|Assistant):|<[|｜][Aa]ssistant[|｜]>|<\|im_start\|>assistant\b|\[/INST\]"
    r"|<start_of_turn>model\b|<\|start_header_id\|>assistant<\|end_header_id\|>)"
)


def _alone(response: str) -> tuple[str, bool]:
    """A response without the marker in front of it, up to the first further turn; and whether anything was cut off."""
    response = response[own.end() :] if (own := _OWN.match(response)) else response
    further = _FURTHER.search(response)
    text = (response[: further.start()] if further else response).strip()
    if not text:
        raise RowDropped(NO_RESPONSE if further else EMPTY)
    return text, further is not None


# A CSV has no lists and writes them as text, `[{'role': ...`; raw Reddit rows have such answers.
_MESSAGES = re.compile(r"""\s*\[\s*\{.*["'](?:role|from)["']\s*:""", re.DOTALL)
_SPELLED = dict.fromkeys(f"messages|{_ANSWERS}|{_PROMPTS}|{_RESPONSES}".split("|"), _MESSAGES)
_SPELLED["answers"] = re.compile(r"\s*[\[{]")
_QUOTED_OR_GAP = re.compile(r"""('(?:\\.|[^'\\])*(?:'|\Z)|"(?:\\.|[^"\\])*(?:"|\Z))|\}\s*\{""", re.DOTALL)
_LONGEST_LIST = 1 << 20


def _with_lists(row: dict) -> dict:
    """The row with the lists that stand there as text read."""
    found = {
        name: _spelled(value, name)
        for name, value in row.items()
        if isinstance(value, str) and name in _SPELLED and _SPELLED[name].match(value)
    }
    return {**row, **found} if found else row


def _spelled(text: str, name: str) -> Any:
    """What `text` spells in JSON, in Python, or as numpy prints an array of objects, without commas between them."""
    if len(text) <= _LONGEST_LIST:
        text = text.strip()
        with_commas = _QUOTED_OR_GAP.sub(lambda found: found[1] or "}, {", text)
        for read, spelling in (json.loads, text), (ast.literal_eval, text), (ast.literal_eval, with_commas):
            with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                return read(spelling)
    raise RowDropped(f"list in column {name} cannot be read")
