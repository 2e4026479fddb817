"""What a recipe calls its data and models: `embedded`, a model that comes in a package, a file or folder of this
machine, or an id on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.packaged import PACKAGED, packaged_folder

# As a dataset or a policy: made here, without a network.
EMBEDDED = "embedded"
# A hub id, with `:subfolder` for a folder inside the repository and `@revision` for a branch, tag or commit of it, or a
# folder on this machine; in each of them a model or a LoRA adapter, which is merged into its base when it is loaded.
Source = str | Path
_ID = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?"
_HUB_NAME = re.compile(rf"({_ID})(?::([\w./-]+))?(?:@([\w./-]+))?", re.ASCII)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
# Revisions with slashes in them, as the hub itself makes them: pull requests and converted data.
_REFS = re.compile(r"refs/(?:pr/\d+|convert/[\w-]+)")
MODEL, DATASET = "model", "dataset"


def local_path(source: Source) -> Path:
    """`source` as a path, with `~` for the home folder; a `~` that stands for nobody's stays. Of a packaged model the
    folder it lies in, which is made the first time."""
    if source in PACKAGED:
        return packaged_folder(source)
    return Path(os.path.expanduser(source))


def is_there(source: Source) -> bool:
    """Whether `source` is a file or folder that is there; False also for what is too long to be a path."""
    return source != EMBEDDED and source not in PACKAGED and os.path.exists(os.path.expanduser(source))


def is_folder(source: Source) -> bool:
    """Whether `source` is meant as a folder of this machine, also where there is none. A packaged model is one."""
    return source in PACKAGED or os.path.exists(os.path.expanduser(source)) or str(source).startswith((".", "/", "~"))


def is_hub_name(source: Source) -> bool:
    """Whether `source` is an id or an address on the hub and not a path of this machine."""
    text = str(source)
    if text == EMBEDDED or is_folder(source):
        return False
    return _ADDRESS.match(text) is not None or _HUB_NAME.fullmatch(text) is not None


def hub_name(source: Source, kind: str = MODEL) -> tuple[str, dict[str, str]]:
    """`owner/name:subfolder@revision` as the hub's id and the keywords `subfolder` and `revision`, each where it is
    given; a folder is its path, and has neither.

    An address of the hub (`https://huggingface.co/gpt2/tree/main/sub`, `hf://datasets/owner/name@v1`) says the same;
    raises InputError for one of another kind than `kind`, of a single file, or of another site.
    """
    text = str(source).strip()
    if is_folder(source):
        return str(local_path(source)), {}
    if _ADDRESS.match(text):
        return _of_address(text, kind)
    parts = _HUB_NAME.fullmatch(text)
    if parts is None:
        return text, {}
    return parts[1], _where(parts[2], parts[3])


def _where(subfolder: str | None, revision: str | None) -> dict[str, str]:
    found = {"subfolder": (subfolder or "").strip("/"), "revision": revision}
    for part in filter(None, found.values()):
        if ".." in part.split("/"):
            raise InputError(f"{part!r} is no subfolder or revision of a repository; leave out the dots")
    return {key: value for key, value in found.items() if value}


def _of_address(text: str, kind: str) -> tuple[str, dict[str, str]]:
    address = urlsplit(text)
    path = address.path.strip("/")
    if address.scheme.lower() == "hf":
        # hf://datasets/owner/name@revision/folder: the first part of the path stands where a host would.
        return _of_uri(text, f"{address.netloc}/{path}".strip("/"), kind)
    hosts = _HOSTS | {urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()}
    if address.scheme.lower() not in ("http", "https") or address.netloc.lower() not in hosts:
        raise InputError(
            f"{text} is not an address of the Hugging Face hub; give an id such as owner/name, or a folder"
        )
    parts = _of_kind(text, path.split("/"), kind)
    verb = next((i for i, part in enumerate(parts[1:3], 1) if part in ("tree", "blob", "resolve", "raw")), None)
    if verb is None:
        return _checked(text, "/".join(parts[:2]), "/".join(parts[2:]), None)
    if parts[verb] != "tree":
        raise InputError(f"{text} is the address of one file; give its repository: {'/'.join(parts[:verb])}")
    rest = unquote("/".join(parts[verb + 1 :]))
    ref = _REFS.match(rest)
    revision = ref[0] if ref else unquote(parts[verb + 1]) if len(parts) > verb + 1 else None
    return _checked(text, "/".join(parts[:verb]), rest[len(revision or "") :], revision)


def _of_uri(text: str, path: str, kind: str) -> tuple[str, dict[str, str]]:
    before, at, after = path.partition("@")
    parts = _of_kind(text, before.split("/"), kind)
    if not at:
        return _checked(text, "/".join(parts[:2]), "/".join(parts[2:]), None)
    after = unquote(after)
    ref = _REFS.match(after)
    revision = ref[0] if ref else after.split("/")[0]
    return _checked(text, "/".join(parts), after[len(revision) :], revision)


def _of_kind(text: str, parts: list[str], kind: str) -> list[str]:
    """The parts of an address behind the word for what is there, which has to be a `kind`."""
    named = {"datasets": DATASET, "models": MODEL, "spaces": "space", "kernels": "kernel", "buckets": "bucket"}
    found = named.get(parts[0], MODEL)
    if found != kind:
        raise InputError(f"{text} is the address of a {found}, and a {kind} is wanted here")
    return parts[1:] if parts[0] in named else parts


def _checked(text: str, name: str, subfolder: str, revision: str | None) -> tuple[str, dict[str, str]]:
    if not re.fullmatch(_ID, name, re.ASCII):
        raise InputError(f"{text} names no repository; an id is name or owner/name")
    return name, _where(subfolder, revision)


def known_as(source: Source) -> str:
    """The name by which `source` is known elsewhere: a hub model's without subfolder and revision, a packaged one's on
    the hub; a folder's is its path."""
    return PACKAGED[source].hub if source in PACKAGED else hub_name(source)[0]
