"""Write numbers, shares, times and names as text, for the page, the figure and the terminal."""

from __future__ import annotations

import math

__all__ = ["counted", "cut_off", "duration", "number", "percent", "shorten"]


def percent(share: float | None) -> str:
    """Return a share as text: ``34 %``."""
    if share is None:
        return "–"
    digits = 1 if 0 < share < 0.0995 or 0.995 <= share < 1 else 0
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def number(value: float | None) -> str:
    """Return a number as text with four digits, or with a power of ten."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.4g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """Return a number of things as text.

    Args:
        number: how many things there are.
        noun: the name of one thing.
        nouns: the name of several; None adds an "s" to `noun`.

    Example:
        >>> counted(1, "step"), counted(2000, "step"), counted(0, "loss", "losses")
        ('1 step', '2,000 steps', '0 losses')
    """
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time as text: ``3 min 20 s``."""
    if not math.isfinite(seconds):
        return f"{number(seconds)} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shorten(name: str, length: int, front: float = 0.5) -> str:
    """Return `name` without its middle if it is longer than `length`.

    Args:
        name: one line of text.
        length: the largest number of characters; under 4 the name stays whole.
        front: the share of the kept characters from the start of the name, 0 to 1.

    Example:
        >>> shorten("encoder.layers.0.weight", 11)
        'encod…eight'
    """
    if len(name) <= length or length < 4:
        return name
    head = int((length - 1) * front)
    return f"{name[:head]}…{name[head - length + 1 :]}"


def cut_off(text: str, longest: int = 300) -> str:
    """Return a text without its end if it is too long: a message may quote what a user gave.

    Args:
        text: of any length.
        longest: so many characters of it stay.

    Example:
        >>> cut_off("norm:1.0", 4), cut_off("norm", 4)
        ('norm…', 'norm')
    """
    return text if len(text) <= longest else f"{text[:longest]}…"
