"""Repositories of the Hugging Face hub as folders of this machine: the one place where anything is fetched.

A name is resolved once to a commit, and the files that are needed of it are put into the hub's own cache; everything
else reads folders. Where the hub cannot serve, what was fetched before is found in the cache.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.names import DATASET, MODEL, Source, hub_name, is_folder, is_hub_name, local_path

ADAPTER_CONFIG, CONFIG, CARD = "adapter_config.json", "config.json", "README.md"
# Beside the weights: configuration, tokenizer, chat template, and the parts of a sentence embedder, each in a folder.
_SMALL = re.compile(r"[^/]+\.(json|txt|model|jinja)|\d+_\w+/(config\.json|model\.safetensors)")
# Only the first kind of weights of which there is one is read.
_WEIGHTS = (
    r"(adapter_)?model\.safetensors",
    r"model-\d+-of-\d+\.safetensors",
    r"(adapter_model|pytorch_model)\.bin",
    r"pytorch_model-\d+-of-\d+\.bin",
)
_LARGE = re.compile(rf"(.*/)?(?!adapter_)({'|'.join(_WEIGHTS)})")
_DATA = re.compile(r".+\.(parquet|jsonl|json|ndjson|csv|tsv|txt|arrow|zip)(\.(gz|zst|bz2|xz))?", re.IGNORECASE)
# Characters; what the hub allows. Longer ones are no names of files either.
_LONGEST_ID = 96


@dataclass(frozen=True)
class Wanted:
    """What is asked of the hub: a repository, the revision by the name it was given, and a folder inside it."""

    name: str
    kind: str
    revision: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        """The name as it may be given, with the word for a dataset before it."""
        kind = "" if self.kind == MODEL else f"{self.kind} "
        where = f":{self.subfolder}" if self.subfolder else ""
        return f"{kind}{self.name}{where}{f'@{self.revision}' if self.revision else ''}"

    @property
    def instead(self) -> str:
        """What to use where the hub is out of reach."""
        return "--set policy=FOLDER" if self.kind == MODEL else "--set dataset=PATH"


@dataclass(frozen=True)
class Snapshot:
    """A repository's files in the cache, at one commit: `root`, whose name is the commit."""

    wanted: Wanted
    root: Path

    @property
    def commit(self) -> str:
        return self.root.name

    @property
    def folder(self) -> Path:
        return self.root / (self.wanted.subfolder or "")


_recorders: list[dict[str, str]] = []


@contextmanager
def recording(commits: dict[str, str]) -> Iterator[None]:
    """While the block runs, `commits` gets the commit of every repository of the hub that is read, by its name."""
    _recorders.append(commits)
    try:
        yield
    finally:
        _recorders[:] = [recorder for recorder in _recorders if recorder is not commits]


def model_folder(source: Source, weights: bool = True) -> Path:
    """The folder of the model or adapter that `source` names: itself, or its files of the hub at one commit.

    Without `weights` only what is small is fetched. Raises InputError where the model cannot be had.
    """
    if is_folder(source):
        return local_path(source)
    return _snapshot(wanted_model(source), weights).folder


def dataset_snapshot(wanted: Wanted) -> Snapshot:
    """A dataset of the hub: its card and all data files that it has below `wanted.subfolder`."""
    return _snapshot(wanted, True)


def look_up(wanted: Wanted, base_is_known: bool = False) -> None:
    """Raise InputError unless the hub, or the cache where the hub cannot serve, has what is wanted and lets us read it;
    the base of an adapter is looked up too, unless `base_is_known`."""
    folder = _snapshot(wanted, False).folder
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file() and not base_is_known:
        settings = read_json(folder / ADAPTER_CONFIG)
        base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
        if base and is_hub_name(base):
            look_up(wanted_model(f"{base}@{revision}" if revision and "@" not in base else base))


def wanted_model(source: Source) -> Wanted:
    """What the name of a model asks of the hub; raises InputError where it is no such name."""
    return _wanted(source, MODEL)


def wanted_dataset(source: str, revision: str | None = None, data_dir: str | None = None) -> Wanted:
    """What a dataset's name and the settings `data.revision` and `data.data_dir` ask of the hub together."""
    found = _wanted(source, DATASET)
    for mine, key, given in ((found.revision, "revision", revision), (found.subfolder, "data_dir", data_dir)):
        if mine and given and mine != given:
            raise InputError(f"dataset {source} says {mine}, and data.{key} {given}; leave one of them out")
    folder = found.subfolder or (data_dir or "").strip("/")
    return Wanted(found.name, DATASET, found.revision or revision or None, folder or None)


def _wanted(source: Source, kind: str) -> Wanted:
    name, where = hub_name(source, kind)
    wanted = Wanted(name, kind, **where)
    if not is_hub_name(name) or len(name) > _LONGEST_ID or len(str(wanted)) > 2 * _LONGEST_ID:
        raise InputError(
            f"cannot load {source} from the Hugging Face hub: it is no id (owner/name), and there is no file or folder "
            f"of that name; check it, or use {wanted.instead}"
        )
    return wanted


def _snapshot(wanted: Wanted, large: bool) -> Snapshot:
    snapshot = _fetched(wanted, large)
    for recorder in _recorders:
        recorder[str(wanted)] = snapshot.commit
    return snapshot


@lru_cache
def _fetched(wanted: Wanted, large: bool) -> Snapshot:
    """The repository in the cache; without `large` only what is small of a model, and of a dataset the card."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    from rlhf_utils.platforms.hub_errors import HubTrouble, asking, tell_once

    def fetch(file: str) -> None:
        where = {"repo_type": wanted.kind, "revision": commit}
        asking(wanted, lambda: hf_hub_download(wanted.name, file, **where))

    try:
        commit, files, configurations = _listed(wanted.name, wanted.kind, wanted.revision)
        needed = _needed(wanted, files, configurations)
        for file in needed:
            if large or file == CARD or (wanted.kind == MODEL and not _LARGE.fullmatch(file)):
                fetch(file)
        if large:
            write_json(_record(wanted), {"commit": commit, "files": needed})
        elif wanted.kind == DATASET:
            # Anybody may read the list and the card of a gated one.
            url = hf_hub_url(wanted.name, needed[-1], repo_type=wanted.kind, revision=commit)
            asking(wanted, lambda: get_hf_file_metadata(url))
        return Snapshot(wanted, _storage(wanted) / "snapshots" / commit)
    except HubTrouble as trouble:
        snapshot = _cached(wanted)
        if snapshot is None:
            raise InputError(
                f"cannot load {wanted} from the Hugging Face hub: {trouble}, and it is not in the cache; "
                f"{trouble.advice}, or use what is on this machine ({wanted.instead}), or --scale tiny, which needs "
                "no network"
            ) from None
        if not constants.HF_HUB_OFFLINE:
            tell_once(f"{trouble}; what is needed of the hub is read from the cache")
        return snapshot


@lru_cache
def _listed(name: str, kind: str, revision: str | None) -> tuple[str, list[str], list[dict]]:
    """The commit that `revision` stands for, the files at it, and the configurations that its card names; asked once by
    a process, so that all it reads of a repository is of one commit."""
    from huggingface_hub import HfApi

    from rlhf_utils.platforms.hub_errors import asking

    wanted = Wanted(name, kind, revision)
    info = asking(wanted, lambda: HfApi().repo_info(name, repo_type=kind, revision=revision))
    card = info.card_data or {}
    return info.sha, [file.rfilename for file in info.siblings or ()], card.get("configs") or []


def _storage(wanted: Wanted) -> Path:
    """Where the hub's library keeps this repository (its page "Understand caching")."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / "--".join([f"{wanted.kind}s", *wanted.name.split("/")])


def _record(wanted: Wanted) -> Path:
    """The file that says which files are needed, written when all of them are there."""
    key = quote(f"{wanted.revision or 'main'}:{wanted.subfolder or ''}", safe="")
    return _storage(wanted) / "complete" / f"{key}.json"


def _cached(wanted: Wanted) -> Snapshot | None:
    """What an earlier run, or another program, left in the cache of this very revision; None unless it is whole."""
    storage, record = _storage(wanted), _record(wanted)
    if record.is_file():
        about = read_json(record)
        root = storage / "snapshots" / about["commit"]
        if all((root / file).is_file() for file in about["files"]):
            return Snapshot(wanted, root)
    reference = storage / "refs" / (wanted.revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else wanted.revision or ""
    root = storage / "snapshots" / commit
    if not re.fullmatch("[0-9a-f]{40}", commit) or not root.is_dir():
        return None
    try:
        _needed(wanted, [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()])
    except InputError:
        return None
    index = next((root / (wanted.subfolder or "")).glob("*.index.json"), None)
    shards = set(read_json(index)["weight_map"].values()) if index else set()
    return Snapshot(wanted, root) if all((index.parent / shard).is_file() for shard in shards) else None


def _needed(wanted: Wanted, files: Sequence[str], configurations: Sequence[dict] = ()) -> list[str]:
    """The files that are read of a repository, the large ones at the end; raises InputError where it lacks the folder,
    a model or data."""
    prefix = f"{wanted.subfolder}/" if wanted.subfolder else ""
    inside = {file.removeprefix(prefix): file for file in files if file.startswith(prefix)}
    if prefix and not inside:
        folders = sorted({file.split("/")[0] for file in files if "/" in file})
        there = f"it has the folders {', '.join(folders[:8])}" if folders else "it has no folders"
        raise InputError(f"{wanted}: {wanted.name} has no folder {wanted.subfolder}; {there}")
    if wanted.kind == DATASET:
        data = [file for name, file in inside.items() if _DATA.fullmatch(name) and "/." not in f"/{file}"]
        if not data:
            raise InputError(f"{wanted} has no data files (parquet, jsonl, csv, ...); name a folder with data.data_dir")
        patterns = _patterns(wanted, configurations) if not prefix else []
        data = [file for file in data if any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] or data
        return [*([CARD] if CARD in files else []), *sorted(data)]
    if not {CONFIG, ADAPTER_CONFIG} & set(inside):
        raise InputError(
            f"{wanted} is no model: it has no config.json; name a model, or the folder of it (NAME:FOLDER)"
        )
    weights = [[name for name in inside if re.fullmatch(kind, name)] for kind in _WEIGHTS]
    has_adapter = any(name.startswith("adapter_") for names in weights for name in names)
    of_adapter = ADAPTER_CONFIG in inside and (CONFIG not in inside or has_adapter)
    for names in weights:
        if found := [name for name in names if name.startswith("adapter_") == of_adapter]:
            # Beside an adapter the configuration would be that of its base.
            small = {name for name in inside if _SMALL.fullmatch(name) and not (of_adapter and name == CONFIG)}
            return [inside[name] for name in [*sorted(small - {*found}), *sorted(found)]]
    others = [name for name in inside if re.search(r"\.(h5|msgpack|ot|onnx|gguf|ckpt|pth?|safetensors|bin)$", name)]
    raise InputError(
        f"{wanted} has no weights that can be read (model.safetensors or pytorch_model.bin"
        f"{f'; it has {others[0]}' if others else ''}); name a revision that has them (NAME@REVISION), or convert them "
        "and give the folder"
    )


def _patterns(wanted: Wanted, configurations: Sequence[dict]) -> list[str]:
    """The data files of the default configuration as patterns, none where the card names none
    (https://huggingface.co/docs/hub/datasets-manual-configuration)."""
    default = [
        one
        for one in configurations
        if one.get("default") or one.get("config_name") == "default" or len(configurations) == 1
    ]
    if configurations and not default:
        names = ", ".join(str(one.get("config_name")) for one in configurations[:12])
        raise InputError(f"{wanted} has several configurations ({names}); name the folder of one with data.data_dir")
    # One pattern or a list, of patterns or of {split, path}, in which a path may be a list again.
    given = default[0].get("data_files", []) if default else []
    paths = [one["path"] if isinstance(one, dict) else one for one in (given if isinstance(given, list) else [given])]
    return [path for one in paths for path in (one if isinstance(one, list) else [one])]
