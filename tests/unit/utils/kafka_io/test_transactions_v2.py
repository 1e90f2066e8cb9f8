"""Transactions of version 2, which kafka-python does not know."""

from collections.abc import Sequence
from contextlib import closing

import pytest
from kafka import KafkaProducer
from kafka.producer.transaction_manager import ProducerIdAndEpoch
from kafka.protocol.api_message import ApiMessage

from tests.harness import Pipeline
from tests.unit.utils.kafka_io.test_exactly_once import join_group, poll_until_assigned
from utils.kafka_io import LogReader, Outgoing, Position, TopicPartition, TransactionalSender
from utils.kafka_io import transactions_v2 as v2
from utils.kafka_io.clients import open_admin
from utils.messages import APP_MESSAGES, PREDICTIONS

#: The requests of a transaction; others, such as those for metadata, are sent at any time.
NAMES = {
    "AddPartitionsToTxnRequest",
    "AddOffsetsToTxnRequest",
    "TxnOffsetCommitRequest",
    "ProduceRequest",
    "EndTxnRequest",
}


def note_requests(producer: KafkaProducer) -> list[str]:
    """The list to which the requests of coming transactions are added, each once.

    The first is repeated while the last transaction is not complete.
    """
    connections = producer._sender._client._manager
    names: list[str] = []
    send = connections.send

    def note_and_send(request: ApiMessage, *args: object, **options: object) -> object:
        if request.name in NAMES and names[-1:] != [request.name]:
            names.append(request.name)
        return send(request, *args, **options)

    connections.send = note_and_send
    return names


def epoch_of(sender: TransactionalSender) -> ProducerIdAndEpoch:
    return sender._producer._transaction_manager.producer_id_and_epoch


def send_numbers(sender: TransactionalSender, numbers: Sequence[int]) -> None:
    sender.send(Outgoing(PREDICTIONS, 0, b"%d" % n, b"{}") for n in numbers)


def read_numbers(pipeline: Pipeline, count: int) -> list[int]:
    """The keys of the first committed records."""
    found: list[int] = []
    with LogReader(pipeline.settings.kafka, [PREDICTIONS]) as reader:
        while len(found) < count and (polled := reader.poll(5_000)):
            found += [int(one.key or b"") for records in polled.values() for one in records]
    return found


def test_transaction_takes_three_requests(pipeline: Pipeline) -> None:
    """Offsets come before the records: a broker held records for 20 ms, and refuses offsets."""
    place = TopicPartition(APP_MESSAGES, 0)
    pipeline.send([(APP_MESSAGES, b"%d" % n, b"{}") for n in range(3)])
    with closing(join_group(pipeline)) as exchange:
        polled = poll_until_assigned(exchange)
        assert exchange._producer is not None
        names = note_requests(exchange._producer)
        for end in (1, 2):
            records = {TopicPartition(PREDICTIONS, 0): [(b"%d" % end, b"{}", None)]}
            exchange.commit(polled, records, {place: Position(end)})
            exchange.wait_for_commit()
        assert names == ["TxnOffsetCommitRequest", "ProduceRequest", "EndTxnRequest"] * 2
        exchange.commit(polled, {}, {place: Position(3)})  # offsets only
        exchange.commit(polled, {}, {})  # nothing
        exchange.wait_for_commit()
        assert names[6:] == ["TxnOffsetCommitRequest", "EndTxnRequest"]
    with closing(join_group(pipeline)) as exchange:
        restored = poll_until_assigned(exchange).restored
        assert restored is not None
        assert restored[place].offset == 3
    assert read_numbers(pipeline, 2) == [1, 2]


def test_every_transaction_has_an_epoch_of_its_own(pipeline: Pipeline) -> None:
    with (
        TransactionalSender(pipeline.settings.kafka, "epochs") as sender,
        closing(open_admin(pipeline.settings.kafka)) as admin,
    ):
        first = epoch_of(sender)
        for n in range(3):
            send_numbers(sender, [2 * n, 2 * n + 1])
            assert epoch_of(sender) == ProducerIdAndEpoch(first.producer_id, first.epoch + n + 1)
            assert admin.describe_transactions(["epochs"])["epochs"].producer_epoch == (
                epoch_of(sender).epoch
            )
    assert read_numbers(pipeline, 6) == list(range(6))


def test_producer_is_replaced_before_its_last_epoch(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that crashed just when the producer id changed left readers waiting."""
    with TransactionalSender(pipeline.settings.kafka, "replaced") as sender:
        send_numbers(sender, [0])
        first, used_up = sender._producer, v2.LAST_EPOCH
        monkeypatch.setattr(v2, "LAST_EPOCH", epoch_of(sender).epoch)
        assert v2.has_used_up_its_epochs(first)
        init = v2.use_if_supported

        def init_with_new_id(producer: KafkaProducer) -> None:
            monkeypatch.setattr(v2, "LAST_EPOCH", used_up)
            init(producer)

        monkeypatch.setattr(v2, "use_if_supported", init_with_new_id)
        send_numbers(sender, [1])
        assert sender._producer is not first
    assert read_numbers(pipeline, 2) == [0, 1]
