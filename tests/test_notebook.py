"""docs/notebook.ipynb runs from top to bottom: from a recipe to the best policy's answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loop_recipes import clean_environment
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells() -> list[str]:
    """The code of the notebook; the last line of a cell that is an expression is shown by a notebook only."""
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] for cell in content["cells"] if cell["cell_type"] == "code")
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]


@pytest.mark.long
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    try:
        import nbclient  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        script = "\n\n".join(cells())
    else:
        script = (
            "import nbformat, nbclient\n"
            f"notebook = nbformat.read({str(NOTEBOOK)!r}, as_version=4)\n"
            "nbclient.NotebookClient(notebook, timeout=None).execute()\n"
            "print(notebook.cells[-1].outputs[0]['text'])\n"
        )
    assert len(cells()) == 7
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment | {"OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.strip()
    summary = json.loads((tmp_path / "runs" / "notebook" / "summary.json").read_text())
    assert summary["state"] == "done" and summary["best_policy"] is not None
