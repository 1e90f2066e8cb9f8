"""Runs a real Apache Kafka on this machine: `Broker`, or `python -m utils.broker`."""

from utils.broker.jars import VERSION, BrokerError, Jar, ensure_jars, find_damaged, load_lock
from utils.broker.java import SHORT_LIVED
from utils.broker.ports import LOOPBACK, free_port, is_answering
from utils.broker.server import Broker, prepare

__all__ = [
    "LOOPBACK",
    "SHORT_LIVED",
    "VERSION",
    "Broker",
    "BrokerError",
    "Jar",
    "is_answering",
    "find_damaged",
    "ensure_jars",
    "free_port",
    "load_lock",
    "prepare",
]
