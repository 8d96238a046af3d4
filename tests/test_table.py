"""Every cell of the table in `tests/table.py` as a test."""

import peft
import pytest
from tests.behaviours import COLUMNS
from tests.table import FILES, ROWS

import trimtab

CELLS = [(row, column) for row in ROWS for column in COLUMNS if not row.leaves_out(column)]


@pytest.mark.parametrize(("row", "column"), [pytest.param(r, c, id=f"{r.label}-{c}") for r, c in CELLS])
@pytest.mark.filterwarnings("ignore")
def test_cell(row, column, tmp_path):
    COLUMNS[column](row, tmp_path)


def refused():
    """Rows of the kinds of layer that PEFT refuses for a method."""
    for file in FILES.values():
        sites = set(getattr(file, "REFUSED", "").split())
        yield from (r for r in file.ROWS if r.oracle == "PEFT refuses it" and r.label.split()[-1] in sites)


@pytest.mark.parametrize("row", [pytest.param(r, id=r.label) for r in refused()])
@pytest.mark.filterwarnings("ignore")
def test_peft_refuses(row):
    row.fresh()
    with pytest.raises((ValueError, TypeError, NotImplementedError, AttributeError, RuntimeError, KeyError)):
        row.fresh(peft)


def test_every_method_has_rows():
    assert {row.kind for row in ROWS} == set(trimtab.METHODS)


def test_what_is_left_out_names_real_columns():
    unknown = {column for row in ROWS for column in row.without} - set(COLUMNS)
    assert not unknown
    assert len({r.label for r in ROWS}) == len(ROWS)
