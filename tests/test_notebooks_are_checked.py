"""nbval passes over cells that were never run and over images; here is what keeps that from hiding anything."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXEMPT = {"nbval-ignore-output", "nbval-skip"}
IMAGES = {"image/png", "image/svg+xml", "image/jpeg"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.name)
def code_cells(request):
    cells = nbformat.read(request.param, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def is_text(output) -> bool:
    """Whether nbval compares something that a wrong claim would change."""
    return output.output_type == "stream" or ("data" in output and not IMAGES & output.data.keys())


def test_every_code_cell_was_run(code_cells):
    assert [cell.source for cell in code_cells if cell.execution_count is None] == []


def test_no_error_is_stored_unless_it_is_the_lesson(code_cells):
    for cell in code_cells:
        if "raises-exception" not in cell.metadata.get("tags", []):
            assert all(output.output_type != "error" for output in cell.outputs), cell.source


def test_at_least_five_outputs_are_compared(code_cells):
    compared = [
        cell
        for cell in code_cells[1:]  # the first cell names the tier
        if not EXEMPT & set(cell.metadata.get("tags", []))
        and "NBVAL_" not in cell.source
        and any(is_text(output) for output in cell.outputs)
    ]
    assert len(compared) >= 5


def test_every_figure_has_alt_text(code_cells):
    for cell in code_cells:
        if any(IMAGES & output.get("data", {}).keys() for output in cell.outputs):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), f"no alt text:\n{cell.source}"
