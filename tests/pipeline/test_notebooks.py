"""The notebooks run from top to bottom, draw pictures, and are committed with their outputs."""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import pytest
from nbclient import NotebookClient

from utils.settings import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PNG = "image/png"
#: How many pictures each notebook has.
PICTURES = {"skopt_vs_hyperopt": 1, "tour": 5}
#: A drawing of lines or bars has at least this share of coloured pixels; text and axes have none.
COLOURED_SHARE = 0.005


@pytest.mark.optional
@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(
    path: Path, prepared_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    small = {
        "PIPELINE_HOME": str(prepared_home),
        "PIPELINE_CONFIG": str(prepared_home / "pipeline.toml"),
    }
    environment = {**os.environ, "NOTEBOOK_SHORT": "1", **small}
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where)
    client.execute(env=environment)  # a cell that fails raises
    assert_pictures(path, notebook["cells"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_holds_the_outputs_of_a_clean_run(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["source"]]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert_pictures(path, code)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert path.stat().st_size < 1024 * 1024
    assert str(Path.home()) not in path.read_text("utf-8")


def assert_pictures(path: Path, cells: list[Any]) -> None:
    """Each cell that draws has made one picture, and something is drawn between its axes."""
    pictures = [
        (cell["id"], matplotlib.image.imread(io.BytesIO(base64.b64decode(output["data"][PNG]))))
        for cell in cells
        for output in cell.get("outputs", [])
        if PNG in output.get("data", {})
    ]
    drawing = [cell["id"] for cell in cells if "plt.subplots(" in "".join(cell["source"])]
    assert [cell_id for cell_id, _ in pictures] == drawing
    assert len(pictures) == PICTURES[path.stem]
    for cell_id, picture in pictures:
        colours = picture[..., :3]
        coloured = colours.max(axis=2) - colours.min(axis=2) > 0.3
        assert coloured.mean() > COLOURED_SHARE, cell_id
