"""Files from strangers: damaged, hostile, or something else. Always a DataError, never a wrong pixel."""

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omniglot_drawings import drawing, png
from PIL import Image

import metaopt as mo
from metaopt.errors import ArgumentError, DataError

GOOD = "images_background/Greek/character01/0394_01.png"


def read(path: Path) -> torch.Tensor:
    return mo.tasks.omniglot(path.parent, "lake", way=2, rotations=False).images


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images_background.zip"


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "/etc/evil.png",
        "C:/evil.png",
        "C:\\evil.png",
        "a\\..\\evil.png",
        "\\e",
    ],
)
def test_members_outside_the_archive_are_refused(path: Path, name: str) -> None:
    write(path, {GOOD: png(drawing("Greek", 1, 1)), name: b""})
    with pytest.raises(DataError, match=r"expected members inside .* at images_background\.zip"):
        read(path)


def patch(path: Path, central: int, local: int | None, layout: str, value: int) -> None:
    """Overwrite a field of the last member's central header, and of its local one."""
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, content.rindex(b"PK\x01\x02") + central, value)
    if local is not None:
        struct.pack_into(layout, content, content.rindex(b"PK\x03\x04") + local, value)
    path.write_bytes(content)


def test_a_decompression_bomb_is_refused_before_it_is_read(path: Path) -> None:
    patch(write(path, {GOOD: png(drawing("Greek", 1, 1))}), 24, 22, "<I", 1 << 30)
    with pytest.raises(DataError, match=r"expected at most 256 MiB when decompressed, got more"):
        read(path)


def test_a_member_that_is_larger_than_it_declares_is_refused(path: Path) -> None:
    patch(write(path, {GOOD: bytes(1 << 20)}), 24, 22, "<I", 100)
    with pytest.raises(DataError, match=r"expected an undamaged member, got .*0394_01\.png"):
        read(path)


def test_too_many_members_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metaopt.tasks._archive._MEMBER_LIMIT", 3)
    write(path, {f"{i}.png": b"" for i in range(4)})
    with pytest.raises(DataError, match=r"expected at most 3 members, got 4"):
        read(path)


def test_encrypted_and_exotic_members_are_refused(path: Path) -> None:
    patch(write(path, {GOOD: b""}), 8, 6, "<H", 1)
    with pytest.raises(DataError, match="expected members without encryption"):
        read(path)
    write(path, {GOOD: b"x" * 100}, zipfile.ZIP_BZIP2)
    with pytest.raises(DataError, match="expected members stored or deflated, got method 12"):
        read(path)


def gigantic() -> bytes:
    content = bytearray(png(drawing("Greek", 1, 1)))
    struct.pack_into(">II", content, 16, 1 << 20, 1 << 20)
    return bytes(content)


IMAGES = {
    "another size": png(Image.new("1", (28, 28))),
    "a pixel bomb": gigantic(),
    "another format": b"GIF89a" + bytes(100),
    "nothing": b"",
    "half a PNG": png(drawing("Greek", 1, 1))[:150],
    "a header only": png(drawing("Greek", 1, 1))[:24],
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_what_is_not_a_drawing_is_refused(path: Path, content: bytes) -> None:
    write(path, {GOOD: content})
    with pytest.raises(DataError, match=r"omniglot\(root\): expected an? .*PNG image.* at .*0394_01\.png"):
        read(path)


FILES = {
    "empty": b"",
    "text": b"404: Not Found",
    "zeros": bytes(1000),
    "an empty zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_what_is_not_an_archive_of_drawings_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"omniglot\(root\): expected .* images_background\.zip.* fetch it again"
    ):
        read(path)


def test_damage_is_found_or_harmless(path: Path, make_archive: Callable[..., Path]) -> None:
    """Cut anywhere, or with bytes overwritten: the right pixels or a DataError, and nothing else."""
    make_archive(path, {"Greek": [1, 2]}, drawers=2)
    whole, right = path.read_bytes(), read(path)
    rng = random.Random(0)
    found = 0
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            del damaged[rng.randrange(len(whole)) :]
        else:
            start = rng.choice([0, whole.index(b"PK\x01\x02")])  # the directory as often as the rest
            for _ in range(rng.choice([1, 2, 8])):
                damaged[rng.randrange(start, len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            images = read(path)
        except DataError:
            found += 1
        else:
            # a name in the directory may have been changed, and with it a drawing lost or moved
            known = {image.numpy().tobytes() for image in right.flatten(0, 1)}
            assert {image.numpy().tobytes() for image in images.flatten(0, 1)} <= known
    assert found > 150


def test_pngs_with_damage_inside_a_sound_zip(path: Path) -> None:
    whole = png(drawing("Greek", 1, 1))
    rng = random.Random(0)
    messages = []
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[rng.randrange(24, len(whole))] = rng.randrange(256)
        write(path, {GOOD: bytes(damaged)})
        with pytest.raises((DataError, ArgumentError)) as caught:
            mo.tasks.omniglot(path.parent, "lake", way=2)
        messages.append(str(caught.value))
    damage = [text for text in messages if "expected an undamaged PNG image" in text]
    readable = [text for text in messages if "shot + query <= 1" in text]  # and only one drawing
    assert len(damage) > 100
    assert len(damage) + len(readable) == 200


# The npz


def arrays(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    """What an npz of three classes and two drawings holds."""
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 28, 28), dtype=np.uint8)
    whole = {
        "images": images,
        "alphabets": np.array(["Greek", "Hebrew"]),
        "class_alphabet": np.array([0, 0, 1], np.uint8),
        "class_character": np.array([1, 2, 1], np.uint8),
    }
    return {name: array for name, array in (whole | changed).items() if array is not None}


def npz(tmp_path: Path, **changed: np.ndarray | None) -> Path:
    path = tmp_path / "omniglot_28_grey.npz"
    np.savez_compressed(path, **arrays(**changed))
    return path


def test_an_npz_is_read_as_it_is(tmp_path: Path) -> None:
    path = npz(tmp_path)
    assert torch.equal(read(path), torch.from_numpy(arrays()["images"]))
    assert mo.tasks.omniglot(tmp_path, way=2, rotations=False).num_classes == 2, "Hebrew is for validation"


WRONG = {
    "no images": (dict(images=None), r"expected an array 'images', got none"),
    "floats": (dict(images=np.zeros((3, 2, 28, 28))), r"expected uint8 .*, got float64"),
    "another size": (
        dict(images=np.zeros((3, 2, 32, 32), np.uint8)),
        r"28, 28\], got uint8 \[3, 2, 32, 32\]",
    ),
    "a number": (dict(images=np.uint8(3)), r"expected uint8 .*, got uint8 \[\]"),
    "a pickle": (dict(alphabets=np.array(["Greek", None], object)), r"expected an array of numbers or text"),
    "too few labels": (dict(class_alphabet=np.zeros(2, np.uint8)), r"expected 3 integers, got uint8 \[2\]"),
    "text as labels": (dict(class_character=np.array(["a", "b", "c"])), r"expected 3 integers, got <U1"),
    "no such alphabet": (dict(class_alphabet=np.array([0, 1, 2])), r"expected a name for every alphabet"),
    "a negative alphabet": (dict(class_alphabet=np.array([0, 1, -1])), r"expected a name for every alphabet"),
    "numbers as names": (dict(alphabets=np.arange(2)), r"expected a name for every alphabet, got int64"),
    "a strange name": (dict(alphabets=np.array(["Greek", "Elvish"])), r"50 alphabets, got 'Elvish'"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_npz_is_refused(tmp_path: Path, changed: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf"omniglot\(root\): .*{message}.* at omniglot_28_grey\.npz"):
        read(npz(tmp_path, **changed))


def test_a_header_that_promises_too_much_is_refused_before_room_is_made(tmp_path: Path) -> None:
    path = tmp_path / "omniglot_28_grey.npz"
    members = {}
    for name, array in arrays().items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    members["images.npy"] = members["images.npy"].replace(b"(3, 2, 28, 28), }    ", b"(3, 2000000, 28, 28)}")
    write(path, members)
    with pytest.raises(DataError, match=r"4704 bytes of data for uint8 \[3, 2000000, 28, 28\]"):
        read(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="expected a zip archive"):
        read(path)
