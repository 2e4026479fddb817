"""What a recipe calls its data and models: `embedded`, a model in a package, a path, or an id or address on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.packaged import PACKAGED, packaged_folder

# A folder, or a hub id with `:subfolder` for a folder inside the repository and `@revision` for a branch, tag or
# commit; each holds a model or a LoRA adapter, which is merged into its base when it is loaded.
Source = str | Path
# As a dataset or a policy: made here, without a network.
EMBEDDED = "embedded"
MODEL, DATASET = "model", "dataset"
_KINDS = {"datasets": DATASET, "models": MODEL, "spaces": "space", "kernels": "kernel", "buckets": "bucket"}
_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_FILE = "blob|resolve|raw"
_ID = rf"(?P<name>[A-Za-z0-9][\w.-]*(?:/(?!(?:tree|{_FILE})/)[A-Za-z0-9][\w.-]*)?)"
_NAME = re.compile(rf"{_ID}(?::(?P<subfolder>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# https://huggingface.co/datasets/owner/name/tree/revision/folder and hf://datasets/owner/name@revision/folder. The hub
# itself makes revisions with slashes: pull requests and converted data.
_ADDRESS = re.compile(
    rf"(?:https?://(?P<host>[^/]+)|hf:/)/(?:(?P<kind>{'|'.join(_KINDS)})/)?{_ID}"
    rf"(?:(?:@|/tree/|/(?P<file>{_FILE})/)(?P<revision>refs(?:/|%2F)(?:pr|convert)(?:/|%2F)[\w-]+|[^/]+))?"
    r"(?:/(?P<subfolder>.*))?",
    re.ASCII | re.IGNORECASE,
)


def local_path(source: Source) -> Path:
    """`source` as a path, with `~` for the home folder; of a packaged model its folder, made the first time."""
    return packaged_folder(source) if source in PACKAGED else Path(os.path.expanduser(source))


def is_there(source: Source) -> bool:
    """Whether `source` is a file or folder that is there; False also for what is too long to be a path."""
    return source != EMBEDDED and source not in PACKAGED and os.path.exists(os.path.expanduser(source))


def is_folder(source: Source) -> bool:
    """Whether `source` is meant as a folder of this machine, also where there is none. A packaged model is one."""
    return source in PACKAGED or os.path.exists(os.path.expanduser(source)) or str(source).startswith((".", "/", "~"))


def is_hub_name(source: Source) -> bool:
    """Whether `source` is an id or an address on the hub and not a path of this machine."""
    text = str(source)
    return text != EMBEDDED and not is_folder(source) and bool(_SCHEME.match(text) or _NAME.fullmatch(text))


def hub_name(source: Source, kind: str = MODEL) -> tuple[str, dict[str, str]]:
    """The hub's id in `owner/name:subfolder@revision` or in an address of the hub, and the keywords `subfolder` and
    `revision` where they are given; a folder is its path, without either.

    Raises InputError for an address of another kind than `kind`, of a single file, or of another site.
    """
    text = str(source).strip()
    if is_folder(source):
        return str(local_path(source)), {}
    address = _SCHEME.match(text) is not None
    found = (_ADDRESS if address else _NAME).fullmatch(text)
    if address:
        hosts = _HOSTS | {urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower()}
        if found is None or (found["host"] and found["host"].lower() not in hosts):
            raise InputError(
                f"{text} is not the address of a repository on the Hugging Face hub; give an id such as owner/name, or "
                "a folder"
            )
        if (there := _KINDS.get((found["kind"] or "").lower(), MODEL)) != kind:
            raise InputError(f"{text} is the address of a {there}, and a {kind} is wanted here")
        if found["file"]:
            raise InputError(f"{text} is the address of one file; give its repository: {found['name']}")
    if found is None:
        return text, {}
    where = {"subfolder": (found["subfolder"] or "").strip("/"), "revision": unquote(found["revision"] or "")}
    for part in where.values():
        if ".." in part.split("/"):
            raise InputError(f"{part!r} is no subfolder or revision of a repository; leave out the dots")
    return found["name"], {key: value for key, value in where.items() if value}


def known_as(source: Source) -> str:
    """The name by which `source` is known elsewhere: its id on the hub, also of a packaged model; a folder's is its
    path."""
    return PACKAGED[source].hub if source in PACKAGED else hub_name(source)[0]
