"""Every cell of the table in `tests/table.py` as a test."""

import peft
import pytest
from tests.behaviours import COLUMNS
from tests.table import OPTIONS, REFUSED, ROWS, SITES, Row

CELLS = [(row, column) for row in ROWS for column in COLUMNS if not row.leaves_out(column)]


@pytest.mark.parametrize(("row", "column"), [pytest.param(r, c, id=f"{r.label}-{c}") for r, c in CELLS])
@pytest.mark.filterwarnings("ignore")
def test_cell(row, column, tmp_path):
    COLUMNS[column](row, tmp_path)


@pytest.mark.parametrize(("kind", "site"), [(kind, s) for kind, sites in REFUSED.items() for s in sites.split()])
def test_peft_refuses(kind, site):
    row = Row("", kind, OPTIONS[kind] | SITES[site])
    row.fresh()
    with pytest.raises((ValueError, TypeError), match=r"not supported|No layers types compatible"):
        row.fresh(peft)


def test_what_is_left_out_names_real_columns():
    unknown = {column for row in ROWS for column in row.without} - set(COLUMNS)
    assert not unknown
    assert len({r.label for r in ROWS}) == len(ROWS)
