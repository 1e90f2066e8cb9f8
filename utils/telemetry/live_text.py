"""Pieces of text of which live lines are made."""

from collections.abc import Sequence

SEPARATOR, FULL, EMPTY = " · ", "█", "░"
#: Where the terminal's encoding lacks these.
ASCII = str.maketrans(dict(zip(f"·{FULL}{EMPTY}○●✔✘─", "|#--*+!-", strict=True)))
BAR_WIDTH = 10


def encodable(text: str, *, ascii_only: bool) -> str:
    """The text with signs that the terminal's encoding has.

    >>> encodable("██░ 2/3 · ✔", ascii_only=True)
    '##- 2/3 | +'
    """
    return text.translate(ASCII) if ascii_only else text


def fit(parts: Sequence[str], width: int) -> str:
    """The first parts as one line of at most that many characters; the first one in any case.

    >>> fit(["1,234/s", "model 7", "lag 0"], 20)
    '1,234/s · model 7'
    """
    text = ""
    for part in parts:
        longer = f"{text}{SEPARATOR}{part}" if text else part
        if text and len(longer) > width:
            break
        text = longer
    return text


def bar(done: int, total: int) -> str:
    """A progress bar of `BAR_WIDTH` characters.

    >>> bar(3, 10)
    '███░░░░░░░'
    """
    full = min(BAR_WIDTH, BAR_WIDTH * done // max(total, 1))
    return FULL * full + EMPTY * (BAR_WIDTH - full)


def rate_text(rate: float) -> str:
    """A rate for a reader.

    >>> rate_text(0.52), rate_text(12345.6)
    ('0.5/s', '12,346/s')
    """
    return f"{rate:.1f}/s" if rate < 10 else f"{rate:,.0f}/s"


def duration_text(seconds: float) -> str:
    """A latency for a reader.

    >>> duration_text(0.0043), duration_text(0.25), duration_text(12.34)
    ('4.3 ms', '250 ms', '12.3 s')
    """
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
