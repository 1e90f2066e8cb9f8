"""A check of error texts that tests of several packages share."""


def one_line(error: BaseException) -> str:
    """Check that an error is one line without secrets; returns the line."""
    text = str(error)
    assert text and "\n" not in text and "secret" not in text
    return text
