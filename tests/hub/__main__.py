"""`python tests/hub [PORT]`: the loopback hub for people; it says which HF_ENDPOINT to set and serves until Ctrl-C."""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests")
sys.path.append(str(ROOT))

from hub.layouts import populate  # noqa: E402
from hub.server import TOKEN, LoopbackHub  # noqa: E402


def main() -> None:
    warnings.filterwarnings("ignore")
    with populate(LoopbackHub(int(sys.argv[1]) if len(sys.argv) > 1 else 8765)) as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_HOME=$(mktemp -d)   # HF_TOKEN={TOKEN} may read and write everything")
        print(*sorted(f"  {kind}s: {name}" for kind, name in hub.repositories), sep="\n", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
