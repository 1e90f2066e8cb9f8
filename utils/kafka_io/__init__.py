"""The only package that uses the Kafka client; it exports what the other packages need.

`ExactlyOnce` is the consumer and producer of a consume-transform-produce loop: the records
it sends and the offsets it has consumed commit in one transaction. `LogReader` reads
partitions without a consumer group, `Sender` writes without transactions, and the functions
create topics and announce events.
"""

from kafka import TopicPartition
from kafka.errors import KafkaError

from utils.kafka_io.clients import (
    RETRIABLE_ERRORS,
    KafkaUnavailable,
    Refused,
    check_broker,
    client_settings,
    raise_if_lasting,
    wait_for_broker,
)
from utils.kafka_io.exactly_once import ExactlyOnce, Fenced, Polled
from utils.kafka_io.log_reader import LogReader, partition_bounds
from utils.kafka_io.ownership import Claim, ForeignTopics, check_owner, claim_topics
from utils.kafka_io.record_batches import LARGEST_COMPRESSED, Content, Headers, Record
from utils.kafka_io.senders import Outgoing, Sender, TransactionalSender, announce
from utils.kafka_io.topic_settings import (
    MAX_MESSAGE_BYTES,
    TopicSettings,
    describe_limit,
    read_settings,
    weaknesses,
)
from utils.kafka_io.topics import ensure_topics, wait_for_topics
from utils.kafka_io.transactions import Position

__all__ = [
    "LARGEST_COMPRESSED",
    "MAX_MESSAGE_BYTES",
    "RETRIABLE_ERRORS",
    "Claim",
    "Content",
    "ExactlyOnce",
    "Fenced",
    "ForeignTopics",
    "Headers",
    "KafkaError",
    "KafkaUnavailable",
    "LogReader",
    "Outgoing",
    "Polled",
    "Position",
    "Record",
    "Refused",
    "Sender",
    "TransactionalSender",
    "TopicSettings",
    "TopicPartition",
    "announce",
    "partition_bounds",
    "check_broker",
    "check_owner",
    "claim_topics",
    "client_settings",
    "describe_limit",
    "ensure_topics",
    "raise_if_lasting",
    "read_settings",
    "wait_for_broker",
    "wait_for_topics",
    "weaknesses",
]
