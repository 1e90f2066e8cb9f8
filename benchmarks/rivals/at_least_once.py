"""The minimum of at-least-once: consume, produce the same bytes, commit the offsets.

    python -m benchmarks.rivals.at_least_once FROM TO

Uses kafka-python's public interface, without transactions: what is killed in between is sent twice.
"""

import signal
import sys

from kafka import KafkaConsumer, KafkaProducer

from utils import settings


def main(source: str, target: str) -> None:
    """Forward records until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    servers = settings.load().kafka.bootstrap_servers
    consumer = KafkaConsumer(
        source,
        bootstrap_servers=servers,
        group_id="at-least-once",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=2_000,
    )
    producer = KafkaProducer(bootstrap_servers=servers)
    while not consumer.assignment():
        consumer.poll(100)
    print("ready", flush=True)
    while True:
        polled = consumer.poll(100)
        if not polled:
            continue
        for records in polled.values():
            for record in records:
                producer.send(target, value=record.value, key=record.key, partition=0)
        producer.flush()
        consumer.commit()


if __name__ == "__main__":
    main(*sys.argv[1:])
