"""The prompt template of a recipe. Every stage trains, scores, and samples on text made by it."""

import hashlib
import json
import re
from dataclasses import astuple, dataclass

from rlhf_utils.platforms.errors import InputError

HUMAN, ASSISTANT = "Human:", "Assistant:"
NEXT_HUMAN, NEXT_ASSISTANT = f"\n\n{HUMAN}", f"\n\n{ASSISTANT}"


@dataclass(frozen=True)
class Template:
    """How a prompt and a response become text. A prompt in normal form is what stands between the first "Human:" and
    the last "Assistant:", stripped; the turns in between stay, so that `format` gives the dialogue back."""

    opening: str = HUMAN + " "
    closing: str = NEXT_ASSISTANT
    joint: str = " "
    trims: bool = True  # the continuation of a text may begin inside a word, and keeps its spaces

    def format(self, prompt: str) -> str:
        """Text the policy continues, "Human: {prompt}\\n\\nAssistant:", without a space at its end."""
        return f"{self.opening}{prompt.strip()}{self.closing}"

    def text(self, prompt: str, response: str) -> str:
        """A whole example: what a reward model reads, and what SFT learns before its EOS."""
        return self.format(prompt) + self.completion(response)

    def completion(self, response: str) -> str:
        """Text of a response: a space, part of the first word's token, and the response; "" for an empty one."""
        return self.joint + text if (text := self.response(response)) else ""

    def response(self, sampled: str) -> str:
        """The response in text that a model wrote after `format(prompt)`."""
        return sampled.strip() if self.trims else sampled

    def normal(self, text: str) -> str:
        """Prompt in normal form from text that may already have "Human:" and "Assistant:" around it."""
        text, opened = re.subn(rf"\A\s*{HUMAN}", "", text)
        # "the Assistant:" that ends ordinary text is not a marker; after "Human:" it is, even on the same line.
        before = r"(?:^|\s)" if opened else r"\n\s*"
        return re.sub(rf"{before}{ASSISTANT}\s*$", "", text).strip()

    @property
    def hash(self) -> str:
        """First 16 hex digits of the sha256 of the template's pieces; stages write it beside what they save."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:16]


TEMPLATE = Template()
TEMPLATES = {"dialogue": TEMPLATE, "continuation": Template(opening="", closing="", joint="", trims=False)}


def check_template(found_hash: str | None, where: object, *accepted: Template) -> None:
    """Raise `InputError` when `where` (a folder, a stage's name) was made with none of the `accepted` templates."""
    if found_hash not in (hashes := [template.hash for template in accepted]):
        told = f"{where} was made with prompt template {found_hash or 'unknown'}, but this version uses"
        raise InputError(f"{told} {' or '.join(hashes)}; make it again (--fresh) or use the version it was made with")
