"""Turns of a dialogue inside one cell: a response that runs on with a further turn, and lists that a file spells as
text."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import re
import tokenize
from typing import Any

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

_OPENED = re.compile(r"\s*[\[{]")
_LIST = re.compile(r"\s*\[\s*\{")
_KEYS = re.compile(r"""["'](?:role|from)["']\s*:""")
_LONGEST_LIST = 1 << 20


def alone(response: str) -> tuple[str, bool]:
    """A response without the marker in front of it, up to the first further turn; and whether anything was cut off."""
    response = response[own.end() :] if (own := _OWN.match(response)) else response
    further = _FURTHER.search(response)
    return (response[: further.start()] if further else response).strip(), further is not None


def is_spelled(value: Any) -> bool:
    """Whether a cell is text that begins like a list or an object."""
    return isinstance(value, str) and bool(_OPENED.match(value))


def is_spelled_list(value: Any) -> bool:
    """Whether a cell is the text of messages, `[{'role': ...`; a CSV has no lists, and writes them so."""
    return isinstance(value, str) and bool(_LIST.match(value) and _KEYS.search(value))


def spelled(text: str) -> Any:
    """The value that `text` spells in JSON, in Python, or as numpy prints an array of objects, without commas.

    Raises ValueError where it is none of them, and for more than a megabyte.
    """
    if len(text) > _LONGEST_LIST:
        raise ValueError("too long")
    text = text.strip()
    for read in (json.loads, ast.literal_eval, lambda text: ast.literal_eval(_with_commas(text))):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
            return read(text)
    raise ValueError("not a list")


def _with_commas(text: str) -> str:
    """`text` with a comma between two objects that have none between them; what stands in quotes stays."""
    starts = [0, *itertools.accumulate(map(len, io.StringIO(text)))]
    before, places = "", []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if before == "}" and token.string == "{":
            places.append(starts[token.start[0] - 1] + token.start[1])
        before = token.string
    for place in reversed(places):
        text = f"{text[:place]},{text[place:]}"
    return text
