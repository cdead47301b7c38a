"""Small archives in the authors' layout, and the real data where it is."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from omniglot_drawings import FIRST, drawing, png


@pytest.fixture(scope="session")
def make_archive() -> Callable[..., Path]:
    """``make_archive(path, {alphabet: characters}, drawers=4)`` writes a zip file and returns its path."""

    def make(path: Path, content: dict[str, list[int]], drawers: int = 4) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{path.stem}/", b"")
            archive.writestr("__MACOSX/._notes", b"what a Mac adds")
            for alphabet, characters in content.items():
                for c in characters:
                    for d in range(1, drawers + 1):
                        name = f"{FIRST.get(alphabet, 1) + c - 1:04d}_{d:02d}.png"
                        member = f"{path.stem}/{alphabet}/character{c:02d}/{name}"
                        archive.writestr(member, png(drawing(alphabet, c, d)))
        return path

    return make


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The folder with the real data; METAOPT_OMNIGLOT says where, if it is not beside the repository."""
    beside = Path(__file__).parents[2].parent / "shared/data/omniglot"
    root = Path(os.environ.get("METAOPT_OMNIGLOT", beside))
    if not (root / "omniglot_28_grey.npz").is_file():
        pytest.skip("omniglot_28_grey.npz is not here; METAOPT_OMNIGLOT tells where it is")
    return root
