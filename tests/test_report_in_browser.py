"""The pages in a real browser: they fit a phone, every picture loads, and hostile text stays text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from made_up_run import make_run

from rlhf_utils.report.page import compare, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")]
# Measured by the browser itself, on a copy of the page.
PROBE = """<script>
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth, window: window.innerWidth, scripts: document.scripts.length,
  broken: [...document.images].filter(i => !i.naturalWidth).length, pictures: document.images.length,
  smallest: Math.min(...[...document.querySelectorAll('p, td, li')].map(e => parseFloat(getComputedStyle(e).fontSize))),
});
</script>"""


def opened(page: Path, folder: Path, width: int) -> dict:
    """What the browser measured of `page` in a window of `width` pixels."""
    copy = folder / f"probed-{width}.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
        f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title and title[1].startswith("{"), done.stderr[-500:]
    return json.loads(title[1].replace("&quot;", '"'))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose answers would like to be more than text."""
    run = make_run(tmp_path_factory.mktemp("browser"))
    path, hostile = run / "evaluation" / "samples.csv", "<script>document.body.innerHTML=''</script><img src=x>"
    pd.read_csv(path).assign(ppo_response=hostile + "w" * 400).to_csv(path, index=False)
    return run


@pytest.mark.parametrize("width", [600, 1200])
def test_the_report_fits_its_window(run, tmp_path, width):
    found = opened(write_report(run), tmp_path, width)
    assert found["width"] <= found["window"], "the page scrolls sideways"
    assert found["broken"] == 0 and found["pictures"] >= 8 and found["scripts"] == 1 and found["smallest"] >= 11


def test_the_comparison_fits_its_window(run, tmp_path):
    compare([run], tmp_path / "out")
    found = opened(tmp_path / "out" / "comparison.html", tmp_path, 600)
    assert found["width"] <= found["window"] and found["broken"] == 0 and found["pictures"] == 1
