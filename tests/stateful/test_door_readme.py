"""The page for those who come from elsewhere: its blocks run, and what they compute is compared."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import metaopt as mo

PAGE = Path(mo.__file__).parent / "stateful" / "README.md"
HEAD, *SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
ROWS = [section for section in SECTIONS if "```python old" in section]
# the old blocks run as they are written, with the door under the old name
NAMES = {
    "higher": mo.stateful,
    "l2l": SimpleNamespace(algorithms=mo.stateful),
    "torchopt": mo.stateful.torchopt,
}


def blocks(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^```python (\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.partition("\n")[0])
def test_old_new_and_further_agree(row: str) -> None:
    names: dict[str, object] = dict(NAMES)
    found = blocks(row)
    assert [kind for kind, _ in found] == ["old", "new", "further"]
    for kind, code in blocks(HEAD) + found:
        exec(compile(code, f"{PAGE}: {kind}", "exec"), names)
    new = [x.detach() for x in names["new"]]  # type: ignore[attr-defined]
    for kind in ("old", "further"):
        for x, y in zip(names[kind], new, strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(x.detach().to(y), y, rtol=1e-5, atol=1e-9)
    assert any(x.abs().sum() > 0 for x in new)


def test_there_are_rows_for_every_library() -> None:
    titles = " ".join(row.partition("\n")[0] for row in ROWS)
    assert len(ROWS) == 9
    assert "learn2learn" in titles
    assert "TorchOpt" in titles
