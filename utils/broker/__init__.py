"""A real Apache Kafka on this machine: `Broker` starts it, `python -m utils.broker` runs it."""

from utils.broker.jars import VERSION, BrokerError, Jar, damaged, ensure_jars, locked_jars
from utils.broker.java import SHORT_LIVED
from utils.broker.ports import LOOPBACK, answers, free_port
from utils.broker.server import Broker, prepare

__all__ = [
    "LOOPBACK",
    "SHORT_LIVED",
    "VERSION",
    "Broker",
    "BrokerError",
    "Jar",
    "answers",
    "damaged",
    "ensure_jars",
    "free_port",
    "locked_jars",
    "prepare",
]
