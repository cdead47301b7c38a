"""Which characters of Omniglot are for training and which for testing.

Lake's split goes by archive: 30 background alphabets, 20 for evaluation. Vinyals' split of the 1623
characters into 1028, 172 and 423 needs three facts: its five validation alphabets; that its test set begins
with the 42nd character of Gurmukhi in the authors' order; and that the rest is for training.
"""

from __future__ import annotations

from metaopt.errors import ArgumentError, DataError

__all__ = ["check_split", "part_of"]

# The authors' order: file 0001_01.png is Arcadian's, 1623_20.png is ULOG's.
_BACKGROUND = """
    Arcadian Armenian Asomtavruli_(Georgian) Balinese Bengali Blackfoot_(Canadian_Aboriginal_Syllabics)
    Braille Cyrillic Early_Aramaic Syriac_(Estrangelo) Anglo-Saxon_Futhorc Futurama Grantha Greek Gujarati
    Hebrew Japanese_(hiragana) Inuktitut_(Canadian_Aboriginal_Syllabics) Malay_(Jawi_-_Arabic)
    Japanese_(katakana) Korean Latin Alphabet_of_the_Magi Mkhedruli_(Georgian) Burmese_(Myanmar) N_Ko
    Ojibwe_(Canadian_Aboriginal_Syllabics) Sanskrit Tagalog Tifinagh
"""
_EVALUATION = """
    Angelic Atemayar_Qelisayer Atlantean Aurek-Besh Avesta Ge_ez Glagolitic Gurmukhi Kannada Keble Malayalam
    Manipuri Mongolian Old_Church_Slavonic_(Cyrillic) Oriya Syriac_(Serto) Sylheti Tengwar Tibetan ULOG
"""
_ORDER = {alphabet: i for i, alphabet in enumerate((_BACKGROUND + _EVALUATION).split())}

_VALIDATION = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
_TEST_BEGINS = (_ORDER["Gurmukhi"], 42)


def check_split(split: str, part: str) -> None:
    """Raise `ArgumentError` unless ``part`` is one of ``split``'s."""
    if split not in ("vinyals", "lake"):
        raise ArgumentError("omniglot(split)", "'vinyals' or 'lake'", repr(split))
    if part not in ("train", "validation", "test"):
        raise ArgumentError("omniglot(part)", "'train', 'validation' or 'test'", repr(part))
    if (split, part) == ("lake", "validation"):
        raise ArgumentError(
            "omniglot(part)",
            "'train' (background) or 'test' (evaluation) for split='lake'",
            "'validation', which Lake's split does not have",
            remedy="Pass split='vinyals', or choose by seed among the training tasks.",
        )


def part_of(split: str, alphabet: str, character: int, at: str) -> str:
    """Return the part of ``split`` that a character belongs to; characters count from 1.

    Source: Lake et al. 2015, Science 350:1332; Vinyals et al. 2016, arXiv:1606.04080.

    >>> part_of("vinyals", "Gurmukhi", 41, ""), part_of("vinyals", "Gurmukhi", 42, "")
    ('train', 'test')
    """
    if alphabet not in _ORDER:
        raise DataError("omniglot(root)", "one of Omniglot's 50 alphabets", repr(alphabet), at)
    if split == "lake":
        return "train" if alphabet in _BACKGROUND.split() else "test"
    if alphabet in _VALIDATION:
        return "validation"
    return "test" if (_ORDER[alphabet], character) >= _TEST_BEGINS else "train"
