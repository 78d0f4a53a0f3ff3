"""The notebooks run from top to bottom on published records, and compute nothing."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_promises(path, monkeypatch, tmp_path):
    published = ROOT / "results/published/quickstart"
    monkeypatch.setenv("STEERBENCH_RESULTS", str(published))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in published.rglob("*")}
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [one for one in outputs if one.output_type == "error" or one.get("name") == "stderr"]
    shown = "".join(str(one.get("text", "")) + str(one.get("data", "")) for one in outputs)
    for word in ("smollm2_135m", "CAA", "CAA control (3 fits)", "no difference found", "image/png"):
        assert word in shown
    assert before == {file: file.stat().st_mtime_ns for file in published.rglob("*")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_was_run(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    text = path.read_text()
    assert str(Path.home()) not in text and str(ROOT) not in text
    assert path.stat().st_size < 500_000
