"""Omniglot: splits, pixels, rotations, and every way to have too little of it."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omniglot_drawings import drawing, png
from torch import Tensor

import metaopt as mo
from metaopt.errors import ArgumentError, DataError, MissingExtraError

BACKGROUND = {"Balinese": [1, 2, 3], "Early_Aramaic": [1, 2], "Greek": [1, 2, 3, 24], "Hebrew": [5]}
EVALUATION = {"Gurmukhi": [40, 41, 42, 43], "Keble": [1, 26]}
PARTS = {  # split, part -> its characters, in the authors' order
    ("vinyals", "train"): {"Balinese": [1, 2, 3], "Greek": [1, 2, 3, 24], "Gurmukhi": [40, 41]},
    ("vinyals", "validation"): {"Early_Aramaic": [1, 2], "Hebrew": [5]},
    ("vinyals", "test"): {"Gurmukhi": [42, 43], "Keble": [1, 26]},
    ("lake", "train"): BACKGROUND,
    ("lake", "test"): EVALUATION,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_archive: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("omniglot")
    make_archive(folder / "images_background.zip", dict(reversed(BACKGROUND.items())))
    make_archive(folder / "images_evaluation.zip", EVALUATION)
    return folder


def box(alphabet: str, character: int, drawer: int) -> Tensor:
    """28x28 means of the ink at the pixels whose centre is in the 3.75x3.75 box, in float64."""
    ink = 1.0 - torch.from_numpy(np.array(drawing(alphabet, character, drawer))).double()
    edges, centre = torch.arange(29) * 3.75, torch.arange(105) + 0.5
    inside = (edges[:-1, None] < centre) & (centre <= edges[1:, None])
    weights = inside / inside.sum(1, keepdim=True).double()
    return weights @ ink @ weights.T


@pytest.mark.parametrize(("split", "part"), PARTS, ids=map("-".join, PARTS))
def test_parts_hold_their_characters_in_order_and_their_pixels(root: Path, split: str, part: str) -> None:
    tasks = mo.tasks.omniglot(root, split, part, way=2, rotations=False)
    expected = [
        torch.stack([box(alphabet, c, d) for d in range(1, 5)])
        for alphabet, characters in PARTS[split, part].items()
        for c in characters
    ]
    assert tasks.images.dtype == torch.uint8
    assert tasks.images.shape == (len(expected), 4, 28, 28)
    error = tasks.images.double() / 255 - torch.stack(expected)
    assert error.abs().max() <= 1.01 / 255, "box averages, rounded to grey levels"


def test_episodes_are_ink_between_0_and_1(root: Path) -> None:
    tasks = mo.tasks.omniglot(root, way=5, shot=2, query=2, dtype=torch.float64)
    (x, y), (qx, qy) = tasks.sample(6, seed=0)
    assert x.shape == qx.shape == (6, 10, 1, 28, 28)
    assert x.dtype == torch.float64
    assert y.tolist() == qy.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 6
    assert x.min() == 0
    assert x.max() == 1
    levels = (x * 255).round()
    assert torch.equal(levels / 255, x)


def test_rotations_are_classes_for_training_and_for_who_asks(root: Path) -> None:
    plain = mo.tasks.omniglot(root, rotations=False).images
    turned = mo.tasks.omniglot(root)
    assert turned.num_classes == 4 * 9
    for turns in range(4):
        quarter = turned.images[9 * turns : 9 * (turns + 1)]
        assert torch.equal(quarter, torch.rot90(plain, turns, (2, 3)))
    for part, count in (("validation", 3), ("test", 4)):
        assert mo.tasks.omniglot(root, part=part, way=2).num_classes == count
        assert mo.tasks.omniglot(root, part=part, way=2, rotations=True).num_classes == 4 * count


def test_small_archives_are_a_subset_and_share_alphabets(
    tmp_path: Path, make_archive: Callable[..., Path]
) -> None:
    make_archive(tmp_path / "images_background_small1.zip", {"Greek": [1, 2], "Early_Aramaic": [1, 2]})
    make_archive(tmp_path / "images_background_small2.zip", {"Greek": [1, 2], "Balinese": [7]})
    tasks = mo.tasks.omniglot(tmp_path, way=2, rotations=False)
    assert tasks.images.shape == (3, 4, 28, 28)
    assert mo.tasks.omniglot(tmp_path, part="validation", way=2).num_classes == 2
    assert mo.tasks.omniglot(tmp_path, "lake", way=2, rotations=False).num_classes == 5
    with pytest.raises(DataError, match=r"expected at least 2 classes, got 0 at omniglot\(vinyals, test\)"):
        mo.tasks.omniglot(tmp_path, part="test", way=2)


def test_repr_says_what_the_tasks_are(root: Path) -> None:
    assert repr(mo.tasks.omniglot(root)) == (
        "omniglot(vinyals, train, rotations): 5-way 1-shot, query 1, 36 classes of 4 drawings, "
        "torch.float32, cpu"
    )


REFUSED = {
    "split": (ArgumentError, r"omniglot\(split\): expected 'vinyals' or 'lake'", dict(split="maml")),
    "part": (ArgumentError, r"omniglot\(part\): expected 'train', 'validation'", dict(part="val")),
    "lake has no validation": (
        ArgumentError,
        r"omniglot\(part\): .*Pass split='vinyals'",
        dict(split="lake", part="validation"),
    ),
    "way": (ArgumentError, r"omniglot\(way\): expected an integer >= 2, got 1", dict(way=1)),
    "classes": (DataError, r"omniglot\(way\): expected at least 37 classes, got 36", dict(way=37)),
    "drawings": (ArgumentError, r"shot \+ query <= 4.*got 3 \+ 2", dict(shot=3, query=2)),
    "rotations": (ArgumentError, r"omniglot\(rotations\): expected True", dict(rotations=4)),
    "dtype": (ArgumentError, r"omniglot\(dtype\)", dict(dtype=torch.uint8)),
}


@pytest.mark.parametrize(("error", "message", "options"), REFUSED.values(), ids=REFUSED)
def test_omniglot_refuses(root: Path, error: type[Exception], message: str, options: dict) -> None:
    with pytest.raises(error, match=message):
        mo.tasks.omniglot(root, **options)


def test_a_folder_without_data_says_what_it_needs(tmp_path: Path, make_archive: Callable[..., Path]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match=r"omniglot_28_grey\.npz, .*none of them at .*download=True"):
            mo.tasks.omniglot(folder)
    make_archive(tmp_path / "images_background.zip", BACKGROUND)
    with pytest.raises(DataError, match=r"Add images_evaluation\.zip"):
        mo.tasks.omniglot(tmp_path)
    assert mo.tasks.omniglot(tmp_path, "lake").num_classes == 40
    with pytest.raises(DataError, match=r"expected .*images_evaluation\.zip"):
        mo.tasks.omniglot(tmp_path, "lake", "test")


@pytest.mark.parametrize("module", ["numpy", "PIL.Image"])
def test_a_missing_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    name = module.split(".")[0]
    with pytest.raises(MissingExtraError, match=rf"expected {name} to read .*metaopt-torch\[vision\]"):
        mo.tasks.omniglot(root)


def test_characters_with_too_few_drawings_and_strange_alphabets(
    tmp_path: Path, make_archive: Callable[..., Path]
) -> None:
    path = make_archive(tmp_path / "images_background.zip", BACKGROUND)
    with zipfile.ZipFile(path, "a") as archive:
        member = "images_background/Greek/character07/0400_01.png"
        archive.writestr(member, png(drawing("Greek", 7, 1)))
    with pytest.raises(
        DataError, match=r"expected 4 drawings of every character, got 1 at Greek/character07"
    ):
        mo.tasks.omniglot(tmp_path, "lake")
    make_archive(tmp_path / "images_background.zip", {"Klingon": [1]})
    with pytest.raises(DataError, match=r"50 alphabets, got 'Klingon' at images_background\.zip"):
        mo.tasks.omniglot(tmp_path, "lake")


COUNTS = {
    ("vinyals", "train"): 1028,
    ("vinyals", "validation"): 172,
    ("vinyals", "test"): 423,
    ("lake", "train"): 964,
    ("lake", "test"): 659,
}


@pytest.mark.parametrize(("split", "part"), COUNTS, ids=map("-".join, COUNTS))
def test_real_splits_are_the_published_ones(omniglot_root: Path, split: str, part: str) -> None:
    tasks = mo.tasks.omniglot(omniglot_root, split, part, rotations=False)
    assert (tasks.num_classes, tasks.num_drawings) == (COUNTS[split, part], 20)
    with np.load(omniglot_root / "omniglot_28_grey.npz", allow_pickle=False) as data:
        names = ["train", "validation", "test"] if split == "vinyals" else ["train", "test"]
        rows = data[f"{split}_split"] == names.index(part)
        assert torch.equal(tasks.images, torch.from_numpy(data["images"][rows]))


def test_real_training_classes_with_rotations(omniglot_root: Path) -> None:
    tasks = mo.tasks.omniglot(omniglot_root, way=20, shot=5, query=15)
    assert tasks.num_classes == 4112
    assert tasks.sample(2, seed=0).query[0].shape == (2, 300, 1, 28, 28)


def test_real_archives_agree_with_the_npz_bit_for_bit(omniglot_root: Path, tmp_path: Path) -> None:
    small = [omniglot_root / f"images_background_small{i}.zip" for i in (1, 2)]
    if not all(path.is_file() for path in small):
        pytest.skip("the small archives are not here; METAOPT_OMNIGLOT tells where they are")
    for path in small:
        (tmp_path / path.name).symlink_to(path.resolve())
    tasks = mo.tasks.omniglot(tmp_path, "lake", rotations=False)
    with np.load(omniglot_root / "omniglot_28_grey.npz", allow_pickle=False) as data:
        rows = data["small1"] | data["small2"]
        assert torch.equal(tasks.images, torch.from_numpy(data["images"][rows]))
