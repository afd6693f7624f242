"""docs/models.md against the golden inventories: what is counted, and whether it is what the paper prints."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "models.md"
UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


def count(config: str, basis: str, active: bool) -> int:
    """Parameters of a golden inventory, of which `basis` says what is counted."""
    golden = json.loads((ROOT / "tests" / "golden" / f"{config.replace('/', '_')}.json").read_text())
    rows = {row["path"]: row for row in golden["parameters"]}
    total = golden["active"] if active else golden["total"]
    table = rows["embedding/table"]
    heads = table["count"] + (rows["head/kernel"]["count"] if "head/kernel" in rows else 0)
    if basis == "all":
        return total
    if basis == "no embeddings":
        return total - heads
    if basis == "experts":
        return sum(row["count"] for path, row in rows.items() if "/moe/" in path and not path.endswith("router"))
    kept = int(basis.removesuffix(" rows").replace(",", ""))
    return total - heads + heads // table["shape"][0] * kept


def agrees(printed: str, ours: int) -> bool:
    """Ours, rounded to as many digits."""
    number, unit = re.fullmatch(r"([\d.]+) ([MBT])(?: active)?", printed).groups()
    digits = len(number.partition(".")[2])
    return f"{ours / UNITS[unit]:.{digits}f}" == number


ROWS = re.findall(r"^\| `(.+?)` \| (.+?) \| ([\d,]+) \| (.+?) \| (yes|no)(.*?) \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("config", "printed", "ours", "basis", "verdict", "why"), ROWS, ids=lambda value: str(value))
def test_row(config, printed, ours, basis, verdict, why):
    """The page tells the count of the config as it is, and is honest about where it differs."""
    number = count(config, basis, "active" in printed)
    assert f"{number:,}" == ours
    assert agrees(printed, number) == (verdict == "yes")
    assert verdict == "yes" or why


def test_every_config_has_a_row():
    configs = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.py")}
    assert {row[0] for row in ROWS} == {name for name in configs if "tiny" not in name}
