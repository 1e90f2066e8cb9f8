"""What the HTTP server remembers of requests on Kafka."""

from serving.ledger import Ledger
from serving.rows import Refusal, SentRow
from utils.messages import Prediction


def row(request_id: str, content: bytes = b"1") -> SentRow:
    return SentRow(request_id, b'{"data":%b}' % content)


def prediction(request_id: str, probability: float = 0.5) -> Prediction:
    return Prediction(request_id, 1, "yes", probability, 1)


def test_a_repeated_row_waits_for_the_same_answer() -> None:
    ledger = Ledger()
    first = ledger.claim([row("a"), row("b")], 1)
    again = ledger.claim([row("a")], 1)
    assert [one.request_id for one in first.to_send] == ["a", "b"] and not again.to_send
    ledger.saw_prediction(prediction("a"))
    assert again.wait.done.done() and not first.wait.done.done()
    ledger.saw_prediction(prediction("b"))
    assert first.wait.done.done()
    ledger.saw_prediction(prediction("a", 0.9))  # of a message that was sent twice
    late = ledger.claim([row("a")], 1)
    assert late.wait.done.done() and late.wait.answers == {"a": prediction("a")}
    assert late.repeated == 1


def test_blanks_and_order_make_no_other_row() -> None:
    ledger = Ledger()
    ledger.claim([SentRow("a", b'{"request_id":"a","data":{"x":1,"y":"2"}}')], 1)
    again = ledger.claim([SentRow("a", b'{"data": {"y": "2", "x": 1}}')], 1)
    assert again.repeated == 1 and not again.refused
    assert ledger.claim([SentRow("a", b'{"data":{"x":"1","y":"2"}}')], 1).refused


def test_another_row_with_the_same_id_is_refused_in_its_place() -> None:
    claim = Ledger().claim([row("a"), row("a", b"2"), row("a")], 1)
    assert list(claim.refused) == [1] and "another row" in claim.refused[1].error
    assert len(claim.to_send) == 1 and claim.repeated == 1


def test_what_was_rejected_may_be_sent_again() -> None:
    ledger = Ledger()
    claim = ledger.claim([row("a")], 1)
    ledger.saw_rejection(Refusal("a", "bad", 1))
    assert claim.wait.answers == {"a": Refusal("a", "bad", 1)}
    assert len(ledger.claim([row("a", b"2")], 1).to_send) == 1


def test_what_others_have_sent_is_not_sent_again() -> None:
    ledger = Ledger()
    ledger.saw_message("a", b'{"data":1}')
    ledger.saw_prediction(prediction("old"))
    assert not ledger.claim([row("a"), row("old")], 1).to_send
    assert ledger.claim([row("a", b"2")], 1).refused


def test_a_message_in_doubt_is_refused_unless_it_is_found() -> None:
    ledger = Ledger()
    lost, found = ledger.claim([row("lost")], 1), ledger.claim([row("found")], 1)
    ledger.doubt("lost", "timed out")
    ledger.doubt("found", "timed out")
    ledger.saw_message("found", b'{"data":1}')
    assert ledger.has_doubts
    ledger.settle_doubts(1)
    assert not ledger.has_doubts and not found.wait.done.done()
    assert "timed out" in str(lost.wait.answers["lost"])
    assert len(ledger.claim([row("lost")], 1).to_send) == 1


def test_a_message_that_was_read_is_never_in_doubt() -> None:
    ledger = Ledger()
    claim = ledger.claim([row("a")], 1)
    ledger.saw_message("a", b'{"data":1}')
    ledger.doubt("a", "the acknowledgement was lost")
    ledger.settle_doubts(1)
    assert not ledger.has_doubts and not claim.wait.done.done()


def test_a_doubt_is_forgotten_with_its_request() -> None:
    ledger = Ledger(remembered=1)
    ledger.leave(ledger.claim([row("a")], 1).wait)
    ledger.doubt("a", "timed out")
    ledger.saw_prediction(prediction("b"))
    assert len(ledger) == 1 and not ledger.has_doubts


def test_a_row_sent_again_after_a_rejection_counts_when_all_is_read_back() -> None:
    ledger = Ledger()  # each topic is read on its own: both messages come before the answers
    ledger.saw_message("a", b'{"data":1}')
    ledger.saw_message("a", b'{"data":2}')
    ledger.saw_rejection(Refusal("a", "bad", 1))
    ledger.saw_prediction(prediction("a"))
    again = ledger.claim([row("a", b"2")], 1)
    assert again.wait.answers == {"a": prediction("a")} and not again.to_send


def test_the_oldest_are_forgotten_but_not_those_that_are_waited_for() -> None:
    ledger = Ledger(remembered=2)
    waiting = ledger.claim([row("waiting")], 1)
    for name in "abc":
        ledger.saw_prediction(prediction(name))
    assert len(ledger) <= 3
    ledger.saw_prediction(prediction("waiting"))
    assert waiting.wait.done.done()


def test_who_waits_no_longer_leaves_the_claim() -> None:
    ledger = Ledger()
    claim = ledger.claim([row("a"), row("b")], 1)
    ledger.saw_prediction(prediction("b"))
    assert ledger.leave(claim.wait) == ["a"]
    claim.wait.done.cancel()
    ledger.saw_prediction(prediction("a"))
    assert ledger.claim([row("a")], 1).wait.done.done()
