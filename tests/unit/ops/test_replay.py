"""Which prediction `replay` pairs with which message, where records are gone."""

from ops import replay


def test_messages_and_predictions_are_paired_by_id() -> None:
    def pair(sent: str, answers: str, finished: int) -> tuple[dict[int, int], list[int], int]:
        """Names in the order of the log, at offsets 0, 1, ...; "-" stands for a deleted record."""
        sent_records, made_records = (
            [(name, offset) for offset, name in enumerate(names) if name != "-"]
            for names in (sent, answers)
        )
        found = replay.pair_by_id(sent_records, made_records, (finished, finished))
        return dict(found.predictions), [offset for offset, _ in found.no_message], found.answered

    assert pair("abc", "abc", 3) == ({0: 0, 1: 1, 2: 2}, [], 3)
    assert pair("--cab", "abc-", 3) == ({2: 2}, [0, 1], 3)  # expired messages, two unanswered
    assert pair("abcab", "---ab", 5) == ({3: 3, 4: 4}, [], 5)  # expired predictions
    assert pair("-bca", "abca", 4) == ({1: 1, 2: 2, 3: 3}, [0], 4)  # compacted messages
    assert pair("abca", "-bca", 4) == ({1: 1, 2: 2, 3: 3}, [], 4)  # compacted predictions
    assert pair("aba", "ab", 2) == ({0: 0, 1: 1}, [], 2)  # sent again, not answered yet
    assert pair("bab", "-ab", 3) == ({1: 1, 2: 2}, [], 3)  # the first prediction has expired
    assert pair("ab", "--", 1) == ({}, [], 1)  # no prediction is left
    assert pair("ab", "ab", 0) == ({0: 0, 1: 1}, [], 2)  # offsets committed in another cluster
