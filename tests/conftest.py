"""What every test runs in: no network, no more than two threads, no display, and a model cache of its own."""

import os
from collections.abc import Iterator

import pytest

# Set before any test module imports torch, transformers or matplotlib, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"


@pytest.fixture(scope="session", autouse=True)
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests out of the user's model cache, unless RLHF_CACHE names one to use."""
    with pytest.MonkeyPatch.context() as patch:
        if "RLHF_CACHE" not in os.environ:
            patch.setenv("RLHF_CACHE", str(tmp_path_factory.mktemp("rlhf_cache")))
        # It decides how this process multiplies, which must not change between two results that are compared.
        from rlhf_utils.platforms.runtime import detect_device

        detect_device()
        yield


@pytest.fixture(scope="session")
def hub() -> Iterator:
    """A hub on the loopback interface with the repositories of `tests/hub/layouts.py`, for processes that ask it."""
    from hub.layouts import populate
    from hub.server import LoopbackHub

    with populate(LoopbackHub()) as serving:
        yield serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two processes one would otherwise wait for the other's last file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
