"""Drawings for archives that a test makes itself."""

import io

import numpy as np
from PIL import Image

# Some real names with the file index of their first character.
FIRST = {"Balinese": 108, "Early_Aramaic": 242, "Greek": 394, "Hebrew": 523, "Gurmukhi": 1159, "Keble": 1245}


def drawing(alphabet: str, character: int, drawer: int) -> Image.Image:
    """105x105, mode "1", ink = False, and different for each of its arguments."""
    rng = np.random.default_rng([FIRST.get(alphabet, 0), character, drawer])
    coarse = rng.random((15, 15)) < 0.8
    return Image.fromarray(np.kron(coarse, np.ones((7, 7), bool)))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
