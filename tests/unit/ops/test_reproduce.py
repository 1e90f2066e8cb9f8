"""The first difference of two files, as `rebuild` shows it."""

from ops import reproduce


def test_first_difference_names_line_and_content() -> None:
    assert reproduce._first_difference(b"a\nb\n", b"a\nc\n") == "line 2: 'b', now 'c'"
    assert reproduce._first_difference(b"a\n", b"a\nc\n") == "line 2: the end, now 'c'"
