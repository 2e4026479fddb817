"""No code from data or models, and no text of theirs that a page or a terminal takes for its own."""

import html
import json
import re
from pathlib import Path

import pytest
from made_up_run import make_run

from rlhf_utils.platforms.errors import InputError, TrainingError, visible
from rlhf_utils.report.cards import _markdown
from rlhf_utils.report.findings import text_summary
from rlhf_utils.report.page import write_report

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(ROOT.glob("0*/*.ipynb"))
# What runs code that stands in what is read, or hands text to a shell.
DANGERS = re.compile(
    r"""\b(?:import|from)\ (?:pickle|cPickle|dill|cloudpickle|marshal|shelve|joblib|jsonpickle|pty)\b
    |(?<![\w.])(?:eval|exec|compile|__import__)\(
    |\bos\.(?:system|popen)\(|\byaml\.(?:unsafe_load|full_load)\(|\byaml\.load\((?!.*SafeLoader)|read_pickle\(|\b(?:np|numpy)\.load\(
    |\bshell=(?!False)|\btrust_remote_code=(?!False)|\bsafe_serialization=(?!True)|\bweights_only=(?!True)
    |\buse_safetensors=(?!True|False,\ weights_only=True)|\btorch\.load\((?!.*weights_only=True)""",
    re.VERBOSE,
)


def sources() -> dict[str, str]:
    paths = [*ROOT.glob("rlhf_utils/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found[path.name] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from dill import loads", "eval(text)", "os.system(text)", "run(text, shell=True)",
        "load(x, trust_remote_code=asked)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "yaml.load(text)", "save(x, safe_serialization=False)", "load(x, use_safetensors=None)",
    ],
)  # fmt: skip
def test_what_would_run_code_is_found(code):
    assert DANGERS.search(code)


def test_nothing_that_is_read_is_run():
    """But the code of the project's own notebooks, in several processes; its YAML is read by a safe loader."""
    found = {place: DANGERS.findall(code) for place, code in sources().items()}
    assert len(found) > 60 and found.pop("rlhf_utils/series.py") == ["exec(", "compile("]
    assert not {place: what for place, what in found.items() if what}


def test_pages_escape_by_themselves():
    """Every jinja environment but that of the Markdown card, whose texts are escaped one by one."""
    plain = [at for at, code in sources().items() if "jinja2.Environment(" in code and "autoescape=True" not in code]
    assert set(plain) <= {"rlhf_utils/report/cards.py"}
    for path in (ROOT / "rlhf_utils").rglob("*.html.j2"):
        assert not re.search(r"\|\s*safe\b|autoescape false", path.read_text(encoding="utf-8")), path


CLEAR, TITLE, TURNED, EIGHT_BIT = "\x1b[2J", "\x1b]0;owned\x07", "\u202e", "\x9b31m"
HOSTILE = f"<script>alert(1)</script>{CLEAR}{TITLE}{TURNED}{EIGHT_BIT}\r\x00| a ](http://evil.example) `b`"


def is_harmless(text: str) -> bool:
    return not any(part in text for part in ("\x1b", "\x9b", "\x07", "\r", "\x00", "\u202e"))


def test_a_terminal_shows_control_characters_as_text():
    assert visible("plain, größer 漢字 🎈\n and so on") == "plain, größer 漢字 🎈\n and so on"
    assert visible("\x1b[2J\u202e\x9b") == "\\u001b[2J\\u202e\\u009b"
    assert json.loads(visible(json.dumps({"text": HOSTILE}, ensure_ascii=False))) == {"text": HOSTILE}


def test_errors_and_summaries_are_safe_to_print():
    for error in (InputError, TrainingError):
        assert is_harmless(str(error(f"row 3: {HOSTILE}"))) and "alert(1)" in str(error(HOSTILE))
    verdict = {"level": "suspected", "text": f"{HOSTILE} is in 90% of answers", "evidence": []}
    said = text_summary({"hacking": verdict, "models": {"ppo": {"reward": 1.0}}})
    assert is_harmless(said) and "alert(1)" in said


def test_a_model_card_takes_no_markup_from_a_phrase():
    card = _markdown(f"The phrase {HOSTILE!s} is in every answer")
    assert is_harmless(card) and "<script>" not in card and "](http" not in card and " `b" not in card
    assert _markdown("gold: +1.2 [0.9, 1.4]") == "gold: +1.2 [0.9, 1.4]"


def test_the_report_shows_phrases_and_responses_as_text(tmp_path):
    root = make_run(tmp_path)
    path = root / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    summary["hacking"] = {**summary.get("hacking", {}), "level": "suspected", "text": HOSTILE, "evidence": [HOSTILE]}
    path.write_text(json.dumps(summary))
    page = write_report(root).read_text(encoding="utf-8")
    assert "<script>alert" not in page and html.escape("<script>alert(1)</script>") in page
