"""The solutions of the exercises run, on the files of the published run alone."""

import re

import pytest
from made_up_run import ROOT, make_run

from rlhf_utils.platforms.files import read_json
from rlhf_utils.runs.run import Run
from rlhf_utils.series import SERIES

SOLUTION = re.compile(
    r"^\*\*\d\.\*\* .+?\n\n<details><summary>Solution</summary>\n\n```python\n(.+?)```\n\n.+?\n\n</details>$",
    re.MULTILINE | re.DOTALL,
)


def solutions(path: str) -> list[str]:
    exercises = "".join(read_json(ROOT / path)["cells"][-1]["source"])
    assert exercises.startswith("## Exercises\n")
    found = SOLUTION.findall(exercises)
    assert len(found) == exercises.count("<details>") == exercises.count("\n**")
    return found


@pytest.mark.parametrize("entry", SERIES, ids=lambda entry: entry.name)
def test_a_notebook_ends_with_exercises_whose_solutions_run(entry, tmp_path, capsys):
    found = solutions(entry.path)
    assert len(found) >= 2
    root = make_run(tmp_path, prompts=250)
    for solution in found:
        exec(solution, {"run": Run.load(root)})
        assert (said := capsys.readouterr().out.strip()) and "nan" not in said
        print(said)
