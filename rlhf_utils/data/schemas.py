"""Adapters: one row of a known dataset form becomes one `Example`.

The form is recognised from the columns alone. A row that cannot be used is dropped with a reason, never an
error: real data has empty cells, numbers where text should be, and dialogues that stop in the middle.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rlhf_utils.data.turns import alone, is_spelled, is_spelled_list, spelled
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

PROMPT_COLUMNS = ("prompt", "instruction", "question")
RESPONSE_COLUMNS = ("response", "completion", "answer", "output")
CONTEXT_COLUMNS = ("input", "context")
TEXT_COLUMNS = ("text", "review")
LABEL_COLUMNS = ("label", "sentiment")
# Where a list of messages may stand, in a CSV as its text.
_MESSAGE_COLUMNS = {"messages", "chosen", "rejected", *PROMPT_COLUMNS, *RESPONSE_COLUMNS}

_LABELS = {"negative": 0, "neg": 0, "positive": 1, "pos": 1}
_DELETED = {"[removed]", "[deleted]", "[deleted by user]"}


@dataclass(frozen=True, slots=True)
class Example:
    """One row in normal form.

    prompt: normal form of `Template`; of a labelled row the text itself. chosen: the better answer, or the
    only one. rejected: the worse answer of a pair. extra: what a form knows besides, such as `label` or the
    answers' scores. cut: whether an answer ran on with a further turn, which was cut off.
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
    """A form of dataset. `matches` looks at the set of column names; `read` turns a row into an `Example`, or
    raises `RowDropped`.
    """

    kind: Kind
    accepts: str
    matches: Callable[[set[str]], bool]
    read: Callable[[dict], Example]


def recognise(columns: Iterable[str], where: str) -> Schema:
    """The schema for these columns; `InputError` names the columns found and every accepted set."""
    columns = [str(column) for column in columns]
    found = set(columns)
    for schema in SCHEMAS:
        if schema.matches(found):
            return schema
    accepted = "; ".join(schema.accepts for schema in SCHEMAS)
    raise InputError(
        f"{where}: columns found: {shown(columns)}. Accepted: {accepted}. Rename the columns to one of these"
    )


def read_rows(rows: list[dict], where: str) -> tuple[Kind, list[Example], Counter]:
    """Recognise and read rows: the kind, the examples in row order, the number of dropped rows by reason."""
    schema = recognise(dict.fromkeys(key for row in rows for key in row), where)
    examples, dropped = [], Counter()
    for row in rows:
        try:
            example = schema.read(_with_lists(row))
            examples.append(example if schema.kind == "labelled" else _without_further_turns(example))
        except RowDropped as reason:
            dropped[str(reason)] += 1
    return schema.kind, examples, dropped


def shown(names: Iterable[str], limit: int = 12) -> str:
    """Column names for a message: control characters escaped, long names and long lists cut."""
    names = [repr(str(name))[1:-1] for name in names]
    cut = [name if len(name) <= 40 else name[:39] + "…" for name in names[:limit]]
    return (", ".join(cut) or "none") + (f" and {len(names) - limit} more" if len(names) > limit else "")


def clean(value: Any) -> str | None:
    """Text of a cell: line ends made \\n, blanks at both ends removed. None for what is empty or not text."""
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, which neither a tokenizer nor a UTF-8 file accepts.
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value.replace("\r\n", "\n").strip() or None


def _text(value: Any) -> str:
    text = clean(value)
    if text is None:
        raise RowDropped(EMPTY)
    return text


def _first(row: dict, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _prompt(value: Any) -> str:
    """Normal form of a prompt given as text or as a list of messages."""
    prompt = _context(value) if isinstance(value, list) else TEMPLATE.normal(_text(value))
    if not prompt:
        raise RowDropped(EMPTY)
    return prompt


def _with_lists(row: dict) -> dict:
    """The row with message lists, and the answers of raw Reddit rows, that stand there as text read."""
    found = {}
    for name, value in row.items():
        if is_spelled(value) if name == "answers" else name in _MESSAGE_COLUMNS and is_spelled_list(value):
            try:
                found[name] = spelled(value)
            except ValueError:
                raise RowDropped(f"list in column {name} cannot be read") from None
    return {**row, **found} if found else row


def _without_further_turns(example: Example) -> Example:
    """The example with each answer by itself; raises `RowDropped` where nothing of one is left."""
    answers = {}
    for name in ("chosen", "rejected"):
        if text := getattr(example, name):
            answers[name], cut = alone(text)
            if not answers[name]:
                raise RowDropped(NO_RESPONSE if cut else EMPTY)
            answers["cut"] = cut or answers.get("cut", False)
    return replace(example, **answers) if answers else example


# Lists of messages {"role": ..., "content": ...}, as trl and chat datasets use them.


def _context(messages: list) -> str:
    """The messages before an answer as a prompt in normal form: a dialogue that ends with a human turn."""
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


def _conversation(messages: Any) -> tuple[str, str]:
    """(prompt, answer) of messages that end with the assistant's; the prompt is "" when it stands alone."""
    if not isinstance(messages, list) or not messages:
        raise RowDropped(EMPTY)
    if not isinstance(messages[-1], dict) or messages[-1].get("role") != "assistant":
        raise RowDropped(NO_ANSWER_AT_END)
    return _context(messages[:-1]), _text(messages[-1].get("content"))


def _turn(value: Any) -> tuple[str, str]:
    return _conversation(value) if isinstance(value, list) else ("", _text(value))


# One function per form.


def read_pair(row: dict) -> Example:
    """(prompt, chosen, rejected); the answers are text, or messages that may repeat the prompt."""
    (context, chosen), (other_context, rejected) = _turn(row.get("chosen")), _turn(row.get("rejected"))
    if context != other_context:
        raise RowDropped(EARLIER_DIFFERENCE)
    return Example(context or _prompt(_first(row, PROMPT_COLUMNS)), chosen, rejected)


def read_dialogues(row: dict) -> Example:
    """(chosen, rejected) as whole dialogues, split at the last assistant turn, which both must share."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, list):
        (prompt, chosen), (other_prompt, rejected) = _conversation(chosen), _conversation(rejected)
        if prompt != other_prompt:
            raise RowDropped(EARLIER_DIFFERENCE)
        return Example(_text(prompt), chosen, rejected)
    (before, marker, chosen), (other, other_marker, rejected) = (
        _text(dialogue).rpartition(NEXT_ASSISTANT) for dialogue in (chosen, rejected)
    )
    if not marker or not other_marker:
        raise RowDropped(NO_ANSWER_TURN)
    if before != other:
        raise RowDropped(EARLIER_DIFFERENCE)
    if NEXT_HUMAN in chosen or NEXT_HUMAN in rejected:
        raise RowDropped(NO_ANSWER_AT_END)
    return Example(_prompt(before + marker), _text(chosen), _text(rejected))


def read_messages(row: dict) -> Example:
    """(messages): the last assistant message is the demonstration."""
    prompt, answer = _conversation(row.get("messages"))
    return Example(_text(prompt), answer)


def read_demonstration(row: dict) -> Example:
    """(prompt, response), also alpaca's (instruction, input, output): the input follows the instruction."""
    context, answer = _turn(_first(row, RESPONSE_COLUMNS))
    prompt, given = context or _prompt(_first(row, PROMPT_COLUMNS)), clean(_first(row, CONTEXT_COLUMNS))
    return Example(f"{prompt}\n\n{given}" if given else prompt, answer)


def read_shp(row: dict) -> Example:
    """Stanford Human Preferences: `labels` is 1 when human_ref_A is the better answer, 0 when B is."""
    prompt = _prompt(row.get("history"))
    answers = [_text(row.get("human_ref_A")), _text(row.get("human_ref_B"))]
    scores = [row.get("score_A"), row.get("score_B")]
    label = _integer(row.get("labels"))
    if label not in (0, 1):
        raise RowDropped(NO_PREFERENCE)
    better, worse = (0, 1) if label == 1 else (1, 0)
    extra = {"score_chosen": scores[better], "score_rejected": scores[worse]}
    return Example(prompt, answers[better], answers[worse], extra)


def read_reddit(row: dict) -> Example:
    """Raw Reddit question (title, selftext, answers): the highest-scored answer against the lowest-scored
    one.
    """
    title, body, answers = _text(row.get("title")), clean(row.get("selftext")), row.get("answers")
    if isinstance(answers, dict):
        texts, scores = answers.get("text"), answers.get("score")
        answers = list(zip(texts, scores, strict=False)) if isinstance(texts, list) and isinstance(scores, list) else []
    elif isinstance(answers, list):
        answers = [(a.get("text"), a.get("score")) for a in answers if isinstance(a, dict)]
    else:
        raise RowDropped(EMPTY)
    scored = [
        (score, text) for raw, number in answers if (text := clean(raw)) and (score := _integer(number)) is not None
    ]
    scored = [pair for pair in scored if pair[1] not in _DELETED]
    best, worst = max(scored, default=(0, "")), min(scored, default=(0, ""))
    if best[0] == worst[0]:
        raise RowDropped(NO_PREFERENCE)
    prompt = f"{title}\n\n{body}" if body and body not in _DELETED else title
    return Example(TEMPLATE.normal(prompt), best[1], worst[1], {"score_chosen": best[0], "score_rejected": worst[0]})


def read_labelled(row: dict) -> Example:
    """Classification: the text, and its class as a number from 0 (negative is 0, positive 1) in
    extra["label"].
    """
    text, label = _text(_first(row, TEXT_COLUMNS)), _first(row, LABEL_COLUMNS)
    number = _LABELS.get(label.strip().casefold()) if isinstance(label, str) else None
    number = _integer(label) if number is None else number
    if number is None or number < 0:
        raise RowDropped(UNKNOWN_LABEL)
    return Example(text, extra={"label": number})


def read_prompt(row: dict) -> Example:
    """A prompt alone."""
    return Example(_prompt(row.get("prompt")))


def _integer(value: Any) -> int | None:
    """A whole number, also as text (CSV) or as a float (a column with gaps); None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) and number.is_integer() else None


def _some(columns: set[str], names: tuple[str, ...]) -> bool:
    return any(name in columns for name in names)


_ANSWERS = {"chosen", "rejected"}
# Beside `prompt`, one of these means another form with a column missing, and that must be said.
_PARTS = _ANSWERS | {"messages", "answers", "history", "human_ref_A", "human_ref_B", "text", "review"}

SCHEMAS = (
    Schema(
        "pairs",
        "(history, human_ref_A, human_ref_B, labels)",
        lambda found: {"history", "human_ref_A", "human_ref_B", "labels"} <= found,
        read_shp,
    ),
    Schema(
        "pairs",
        "(prompt, chosen, rejected)",
        lambda found: _ANSWERS <= found and _some(found, PROMPT_COLUMNS),
        read_pair,
    ),
    Schema(
        "pairs",
        f'(chosen, rejected) as whole "{HUMAN} … {ASSISTANT} …" dialogues',
        lambda found: _ANSWERS <= found,
        read_dialogues,
    ),
    Schema("pairs", "(title, answers)", lambda found: {"title", "answers"} <= found, read_reddit),
    Schema(
        "demonstrations",
        "(messages)",
        lambda found: "messages" in found and not found & _ANSWERS,
        read_messages,
    ),
    Schema(
        "demonstrations",
        "(prompt|instruction|question, response|completion|answer|output)",
        lambda found: _some(found, PROMPT_COLUMNS) and _some(found, RESPONSE_COLUMNS) and not found & _ANSWERS,
        read_demonstration,
    ),
    Schema(
        "labelled",
        "(text|review, label|sentiment)",
        lambda found: _some(found, TEXT_COLUMNS) and _some(found, LABEL_COLUMNS),
        read_labelled,
    ),
    Schema("prompts", "(prompt)", lambda found: "prompt" in found and not found & _PARTS, read_prompt),
)
