"""Texts are cut to their room."""

import pytest

from autoliver.values import shortened

CUT = {
    ("abcdefghij", 10, False): "abcdefghij",
    ("abcdefghij", 9, False): "abcdef...",
    ("abcdefghij", 10, True): "abcdefghij",
    ("abcdefghij", 9, True): "abc...hij",
    ("abcdefghij", 8, True): "abc...ij",
    ("abcdefghij", 4, True): "a...",
    ("abcdefghij", 3, True): "...",
    ("", 3, True): "",
}


@pytest.mark.parametrize(("text", "most", "middle"), CUT)
def test_a_text_fits_its_room(text: str, most: int, middle: bool) -> None:
    assert shortened(text, most, middle=middle) == CUT[text, most, middle]
