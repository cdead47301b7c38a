"""README's Python blocks run, in order, as one script; its commands are the ones that exist."""

import re
from pathlib import Path

import pytest

from metaopt.__main__ import main

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text()


def test_code_blocks_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert float(names["d_beta2"]) != 0.0  # type: ignore[arg-type]


def test_pictures_exist() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", TEXT)
    assert pictures
    assert all((README.parent / picture).is_file() for picture in pictures)


def test_opens_with_two_commands() -> None:
    kinds = re.findall(r"^```(\w+ ?\w*)$", TEXT, re.MULTILINE)
    assert kinds[:2] == ["bash run", "bash test"]


@pytest.mark.parametrize("command", re.findall(r"python -m metaopt (\w+)", TEXT))
def test_commands_exist(command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
