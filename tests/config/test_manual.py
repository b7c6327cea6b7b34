"""docs/configuration.md is what the declarations say."""

from anchorjax.config import KEYS, manual


def test_page_is_current():
    assert manual.PAGE.read_text() == manual.page(), "run `python -m anchorjax.config.manual`"


def test_page_has_a_row_of_five_cells_for_every_key():
    rows = [line for line in manual.page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(KEYS)
    for row, (name, key) in zip(rows, KEYS.items(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").replace("\\|", "/").split("|")]
        assert len(cells) == 5 and cells[0] == f"`{name}`" and cells[3] == key.resume
