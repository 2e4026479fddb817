"""Rows: where they come from (the embedded world, a file or folder on this machine, the Hugging Face hub), and how one
of any known form becomes an `Example`. The form is recognized from the columns alone.

What is wrong with a file is said with its name and, where there is one, its line. A row that cannot be used is dropped
with a reason, never an error: real data has empty cells, numbers where text should be, and cut-off dialogues.
"""

import ast
import gzip
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas
from pyarrow import parquet

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import parse_json
from rlhf_utils.platforms.names import DATASET, EMBEDDED, is_hub_name, is_there, local_path, snapshot, wanted
from rlhf_utils.settings.sections import DataSettings
from rlhf_utils.settings.template import ASSISTANT, NEXT_ASSISTANT, NEXT_HUMAN, TEMPLATE
from rlhf_utils.toyworld import WORLDS

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet")


class Rows(NamedTuple):
    """Rows as the dataset `name` has them; `test` is None when there is no test split."""

    train: list[dict]
    test: list[dict] | None
    name: str


def load_rows(dataset: str, settings: DataSettings, seed: int) -> Rows:
    """Rows of `dataset`: "embedded" (`seed` is for that), a path, or a hub id; `InputError` where they can't be had."""
    if (dataset := dataset.strip()) == EMBEDDED:
        sizes = {"train": settings.embedded_rows, "test": settings.embedded_test_rows}.items()
        return Rows(*(WORLDS[settings.world].rows(*size, seed, settings.label_noise) for size in sizes), EMBEDDED)
    if not dataset:
        raise InputError("dataset is empty; give a file, a folder, a hub id, or embedded")
    if not is_local(dataset):
        asked = wanted(dataset, DATASET, settings.revision, settings.data_dir)
        return Rows(*_folder_rows(snapshot(asked), asked.subfolder, settings, f"hub dataset {dataset}"), dataset)
    if (path := local_path(dataset)).is_dir():
        return Rows(*_folder_rows(path, settings.data_dir, settings, f"folder {path}"), str(path))
    if not (train := _file_rows(path)):
        raise InputError(f"{path} is empty: it holds no rows; give a file with rows")
    return Rows(train, None, str(path))


@contextmanager
def _readable(where: object, help: str):
    """InputError, in one line, for what libraries raise of files that they cannot read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}"[:200].split())
        raise InputError(f"{where} cannot be read ({reason}); {help}") from error


def is_local(dataset: str) -> bool:
    """A path that is there, or a name that is no id of the hub, or one that ends like a file we read."""
    # An address is refused as a name of the hub.
    named_like_a_file = "://" not in dataset and dataset.lower().endswith(SUFFIXES)
    return dataset != EMBEDDED and (is_there(dataset) or named_like_a_file or not is_hub_name(dataset))


def _folder_rows(folder: Path, data_dir: str | None, settings: DataSettings, where: str) -> tuple:
    """(train rows, test rows or None) of a folder laid out like a dataset of the hub: `train.jsonl`, `test.jsonl`."""
    import datasets

    with _readable(where, "check data.data_dir and data.revision, or give a file with --set dataset=PATH"):
        splits = datasets.load_dataset(str(folder), data_dir=data_dir)
    train, test = (splits[name].to_list() if name in splits else [] for name in (settings.split, settings.test_split))
    if not train:
        told = f"{where} has no split {settings.split!r}, or an empty one"
        raise InputError(f"{told}; it has {shown(splits)}: choose with --set data.split=NAME")
    return train, test or None


def _file_rows(path: Path) -> list[dict]:
    if not path.is_file():
        raise InputError(f"no file {path}; check the path given as dataset")
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise InputError(f"{path}: cannot read this kind of file; use one of {', '.join(SUFFIXES)}")
    with _readable(path, "save text as UTF-8, and all else whole and in the format that its name says"):
        if name.endswith(".parquet"):
            return parquet.ParquetFile(path).read().to_pylist()
        if name.endswith(".csv"):
            with warnings.catch_warnings():
                warnings.simplefilter("error", pandas.errors.ParserWarning)  # a first row with more cells than names
                table = pandas.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
            return table.rename(columns=str.strip).to_dict("records")
        with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            text = file.read()
    if name.endswith(".json") and text.lstrip().startswith("["):
        rows = parse_json(text, path)
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [parse_json(line, path, number) for number, line in lines if line.strip()]
    if odd := {type(row).__name__ for row in rows} - {"dict"}:
        raise InputError(f'{path}: expected rows such as {{"prompt": …}}, not {", ".join(odd)}; mend them')
    return rows


Kind = Literal["pairs", "labelled"]

EMPTY = "empty or not text"
NO_ANSWER_AT_END = f'dialogue does not end with an "{ASSISTANT}" turn'
EARLIER_DIFFERENCE = "dialogues differ before the last answer"
NO_PREFERENCE = "no clear preference"
UNKNOWN_LABEL = "label not understood"
UNKNOWN_ROLE = "conversation not understood"
NO_RESPONSE = "response begins with another turn"


class Example(NamedTuple):
    """One row: the prompt in normal form of `Template` (of a labelled row the text itself), the responses of a pair,
    what a form knows besides (`label`, scores), what the row says of it (`ABOUT`), and whether a response was cut."""

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    extra: dict[str, Any] = {}
    cut: bool = False


class RowDropped(Exception):
    """This row cannot be used; the message is the reason it is counted under."""


def read_rows(rows: list[dict], where: str) -> tuple[Kind, list[Example], Counter]:
    """Recognize and read rows: the kind, the examples in row order, the number of dropped rows by reason. `InputError`
    names the columns found and every accepted set."""
    found = list(dict.fromkeys(str(key) for row in rows for key in row))
    accepted = [s for s in SCHEMAS if all({*found} & {*group.split("|")} for group in s.split(", "))]
    if not accepted:
        every = "; ".join(f"({columns})" for columns in SCHEMAS)
        raise InputError(f"{where}: columns found: {shown(found)}. Accepted: {every}. Rename yours to one of these")
    read, examples, dropped = SCHEMAS[accepted[0]], [], Counter()
    for row in rows:
        try:
            example = read(row)
            examples.append(example._replace(extra={**example.extra, **_about(row)}))
        except RowDropped as reason:
            dropped[str(reason)] += 1
    return "labelled" if read is _labelled else "pairs", examples, dropped


# What a row may say of its prompt, and the columns that say it, the first that is there; the comparison groups by it.
ABOUT = {"topic": ("topic", "category", "subset"), "unsafe": ("unsafe",)}


def _about(row: dict) -> dict[str, str]:
    """The texts of `ABOUT` in a row, where it has them; `unsafe` is yes or no."""
    cells = {name: [row[key] for key in keys if row.get(key) not in (None, "")] for name, keys in ABOUT.items()}
    found = {name: " ".join(str(some[0]).split()) for name, some in cells.items() if some}
    if "unsafe" in found:
        found["unsafe"] = "yes" if found["unsafe"].casefold() in ("1", "1.0", "true", "yes", "unsafe") else "no"
    return found


def shown(names: Iterable[str]) -> str:
    """Column names for a message, a long list cut."""
    text = ", ".join(map(str, names)) or "none"
    return text if len(text) <= 300 else f"{text[:299]}…"


def clean(value: Any) -> str | None:
    """Text of a cell: line ends made \\n, spaces at both ends removed. None for what is empty or not text."""
    if not isinstance(value, str):
        return None
    # JSON can spell half a surrogate pair, which neither a tokenizer nor a UTF-8 file accepts.
    value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value.replace("\r\n", "\n").strip() or None


_LABELS = {"negative": 0, "neg": 0, "positive": 1, "pos": 1}
# Reviews are often kept as pieces of web pages (IMDB's are), and a policy would learn to write the marks.
_LINE_BREAK = re.compile(r"[ \t]*<br ?/?>[ \t]*", re.IGNORECASE)
_DELETED = {"[removed]", "[deleted]", "[deleted by user]"}
# A CSV has no lists and writes messages as text, `[{'role': ...`.
_MESSAGES = re.compile(r"""\s*\[\s*\{.*["'](?:role|from)["']\s*:""", re.DOTALL)


def _text(value: Any) -> str:
    if (text := clean(value)) is None:
        raise RowDropped(EMPTY)
    return text


def _whole(value: Any) -> int | None:
    """A whole number, also as text (CSV) or as a float (a column with gaps); None for anything else."""
    with suppress(TypeError, ValueError, OverflowError):
        return int(float(value)) if float(value).is_integer() else None


def _labelled(row: dict) -> Example:
    text, label = row.get("text", row.get("review")), row.get("label", row.get("sentiment"))
    text = _text(_LINE_BREAK.sub("\n", text) if isinstance(text, str) else text)
    number = _whole(_LABELS.get(label.strip().casefold(), label) if isinstance(label, str) else label)
    if number is None or number < 0:
        raise RowDropped(UNKNOWN_LABEL)
    return Example(text, extra={"label": number})


def _pair(row: dict, **votes: Any) -> Example:
    """A pair of responses with their prompt beside them, or of whole dialogues where there is none."""
    turns = [_turn(_spelled(row.get(side)), whole="prompt" not in row) for side in ("chosen", "rejected")]
    if turns[0][0] != turns[1][0]:
        raise RowDropped(EARLIER_DIFFERENCE)
    prompt = turns[0][0] or _prompt(_spelled(row.get("prompt")))
    (better, cut), (worse, cut_too) = (_alone(response) for _, response in turns)
    return Example(prompt, better, worse, votes, cut or cut_too)


def _spelled(cell: Any) -> Any:
    """A cell of text that spells messages, in JSON or in Python, as these messages."""
    if not isinstance(cell, str) or not _MESSAGES.match(cell):
        return cell
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return read(cell.strip())
    raise RowDropped(UNKNOWN_ROLE)


def _prompt(value: Any) -> str:
    """Normal form of a prompt given as text or as a list of messages."""
    if prompt := _context(value) if isinstance(value, list) else TEMPLATE.normal(_text(value)):
        return prompt
    raise RowDropped(EMPTY)


def _turn(value: Any, whole: bool) -> tuple[str, str]:
    """(prompt, response) of messages, or of text that is a `whole` dialogue; the prompt of a response alone is ""."""
    if isinstance(value, list) and value:
        if not isinstance(value[-1], dict) or value[-1].get("role") != "assistant":
            raise RowDropped(NO_ANSWER_AT_END)
        return _context(value[:-1]), _text(value[-1].get("content"))
    if not whole:
        return "", _text(value)
    before, marker, response = _text(value).rpartition(NEXT_ASSISTANT)
    if not marker or NEXT_HUMAN in response:
        raise RowDropped(NO_ANSWER_AT_END)
    return _prompt(before + marker), _text(response)


def _context(messages: list) -> str:
    """The messages before a response as a prompt in normal form: a dialogue that ends with a human turn."""
    text = system = role = ""
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("user", "assistant", "system"):
            raise RowDropped(UNKNOWN_ROLE)
        content = _text(message.get("content"))
        if role == "system":
            system = content + "\n\n"
        elif role == "user":
            text, system = f"{text}{NEXT_HUMAN} {system}{content}", ""
        else:
            text += f"{NEXT_ASSISTANT} {content}"
    if role not in ("", "user"):
        raise RowDropped(UNKNOWN_ROLE)
    return TEMPLATE.normal(text)


def _shp(row: dict) -> Example:
    """Stanford Human Preferences: `labels` is 1 when human_ref_A is the better response, 0 when B is."""
    if (label := _whole(row.get("labels"))) not in (0, 1):
        raise RowDropped(NO_PREFERENCE)
    better, worse = "AB" if label else "BA"
    both = {"chosen": row.get(f"human_ref_{better}"), "rejected": row.get(f"human_ref_{worse}")}
    votes = {"score_chosen": row.get(f"score_{better}"), "score_rejected": row.get(f"score_{worse}")}
    return _pair({"prompt": row.get("history"), **both}, **votes)


def _reddit(row: dict) -> Example:
    """A raw question with title, selftext, and answers: the highest-scored answer against the lowest-scored one."""
    title, body, answers = _text(row.get("title")), clean(row.get("selftext")), row.get("answers")
    found = []
    with suppress(TypeError, KeyError):  # answers of another form than these two
        if isinstance(answers, dict):
            answers = [{"text": t, "score": s} for t, s in zip(answers["text"], answers["score"], strict=False)]
        found = [(_whole(answer["score"]), clean(answer["text"])) for answer in answers]
    scored = sorted((score, text) for score, text in found if score is not None and text and text not in _DELETED)
    if not scored or scored[0][0] == scored[-1][0]:
        raise RowDropped(NO_PREFERENCE)
    prompt = f"{title}\n\n{body}" if body and body not in _DELETED else title
    (least, worst), (most, best) = scored[0], scored[-1]
    return _pair({"prompt": prompt, "chosen": best, "rejected": worst}, score_chosen=most, score_rejected=least)


# How a row is read, by the columns that a dataset has; alternatives are separated by |.
SCHEMAS = {
    "history, human_ref_A, human_ref_B, labels": _shp,
    "prompt, chosen, rejected": _pair,
    "chosen, rejected": _pair,
    "title, answers": _reddit,
    "text|review, label|sentiment": _labelled,
}

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
    r"\A\s*(?:Assistant:|### ?(?:Response|Assistant):|<[|｜][Aa]ssistant[|｜]>|<\|im_start\|>assistant\b|\[/INST\]"
    r"|<start_of_turn>model\b|<\|start_header_id\|>assistant<\|end_header_id\|>)"
)


def _alone(response: str) -> tuple[str, bool]:
    """A response without the marker in front of it, up to the first further turn; and whether anything was cut off."""
    text, *further = _FURTHER.split(_OWN.sub("", response), maxsplit=1)
    if not text.strip():
        raise RowDropped(NO_RESPONSE if further else EMPTY)
    return text.strip(), bool(further)
