"""Every notebook runs from top to bottom, at toy size."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
TOY = """
CONFIG = {config!r}
RUN = {run!r}
OVERRIDES = {overrides!r}
"""


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(30):
        (corpus / f"{index}.txt").write_text("".join(f"def f{i}(x):\n    return x + {i * index}\n\n" for i in range(40)))
    overrides = [
        f"data.files={corpus}/*.txt",
        f"data.cache_dir={tmp_path / 'cache'}",
        "model.vocab_size=512",
        "model.embed_dim=32",
        "model.mlp_dim=64",
        "model.num_layers=2",
        "data.sequence_length=96",
        "data.batch_size=8",
        "sample.num_tokens=8",
        "train.num_steps=20",
        "train.eval_every=10",
        "train.checkpoint_every=10",
    ]
    notebook = nbformat.read(path, as_version=4)
    toy = TOY.format(config=str(ROOT / "configs" / "palm" / "tiny.py"), run=str(tmp_path / "run"), overrides=overrides)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = toy
    # Raises CellExecutionError with the cell's traceback if one fails.
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    # Rich shows its lines as data, everything else is a stream.
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "step 20  validation" in printed
    assert "def __init__(self" in printed
    assert (tmp_path / "run" / "report.html").is_file()
