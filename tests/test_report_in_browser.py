"""The pages in a real browser: they fit a phone, every picture loads, and hostile text stays text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pandas as pd
import pytest
from made_up_run import make_run

from rlhf_utils.report.page import compare, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Measured by the browser itself, on a copy of the page.
PROBE = """<script>
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth, window: window.innerWidth, scripts: document.scripts.length,
  broken: [...document.images].filter(i => !i.naturalWidth).length, pictures: document.images.length,
  smallest: Math.min(...[...document.querySelectorAll('p, td, li')].map(e => parseFloat(getComputedStyle(e).fontSize))),
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_the_pages_fit_their_windows(tmp_path):
    run = make_run(tmp_path)
    path, hostile = run / "evaluation" / "samples.csv", "<script>document.body.innerHTML=''</script><img src=x>"
    pd.read_csv(path).assign(ppo_response=hostile + "w" * 400).to_csv(path, index=False)
    compare([run], tmp_path / "out")
    for page, width, pictures in (
        (write_report(run), 600, 11), (run / "report.html", 1200, 11), (tmp_path / "out" / "comparison.html", 600, 1),
    ):  # fmt: skip
        probed = tmp_path / "probed.html"
        probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
        command = [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
            f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}", probed.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        title = re.search(r"<title>({.*?})</title>", done.stdout, re.DOTALL)
        assert title, done.stderr[-500:]
        found = json.loads(title[1].replace("&quot;", '"'))
        assert found["width"] <= found["window"], "the page scrolls sideways"
        assert (found["broken"], found["pictures"], found["scripts"]) == (0, pictures, 1) and found["smallest"] >= 11
