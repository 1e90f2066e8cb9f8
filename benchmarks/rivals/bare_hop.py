"""The minimum of exactly-once: consume, produce the same bytes, commit; without scoring.

    python -m benchmarks.rivals.bare_hop FROM TO

Uses kafka-python's public interface, with settings for fast transactions.
"""

import signal
import sys

from kafka import KafkaConsumer, KafkaProducer
from kafka.structs import OffsetAndMetadata

from utils import settings


def main(source: str, target: str) -> None:
    """Forward records until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    servers = settings.load().kafka.bootstrap_servers
    consumer = KafkaConsumer(
        source,
        bootstrap_servers=servers,
        group_id="bare-hop",
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=2_000,
    )
    producer = KafkaProducer(
        bootstrap_servers=servers, transactional_id="bare-hop", retry_backoff_ms=5
    )
    producer.init_transactions()
    while not consumer.assignment():
        consumer.poll(100)
    print("ready", flush=True)
    while True:
        polled = consumer.poll(100)
        if not polled:
            continue
        producer.begin_transaction()
        for records in polled.values():
            for record in records:
                producer.send(target, value=record.value, key=record.key, partition=0)
        offsets = {tp: OffsetAndMetadata(rs[-1].offset + 1, "", -1) for tp, rs in polled.items()}
        producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
        producer.commit_transaction()


if __name__ == "__main__":
    main(*sys.argv[1:])
