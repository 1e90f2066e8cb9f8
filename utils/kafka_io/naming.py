"""Puts the pipeline's name before each topic, group and transactional id that Kafka sees.

With it several pipelines share a cluster: `app_messages` of the pipeline `fraud` is the topic
`fraud.app_messages`. All code uses the short names. Requests get the full ones right before they
are encoded, and responses the short ones right after they are decoded, so that no client and no
request is left out. Kafka's protocol says itself which fields hold such a name.

A record holds no name in this layer: the cost is that of a few strings for each request.
"""

import copy
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from kafka.admin import ConfigResourceType
from kafka.net.connection import KafkaConnection
from kafka.net.transport import KafkaTCPTransport
from kafka.protocol.api_data import ApiData
from kafka.protocol.consumer.metadata import (
    ConsumerProtocolAssignment,
    ConsumerProtocolSubscription,
)
from kafka.protocol.data_container import DataContainer
from kafka.protocol.schemas import BaseField

#: What the protocol calls the content of a field that holds a name.
_NAMES = ("topicName", "groupId", "transactionalId")
#: Fields that hold a name as well, though the protocol does not say so: of any message, and of
#: one kind.
_MORE_NAMES = ("group_instance_id", "resource_name")
_MORE_NAMES_OF = (
    ("ConsumerProtocolSubscription", "topics"),
    ("FindCoordinatorRequest", "key"),
    ("FindCoordinatorRequest", "coordinator_keys"),
    ("Coordinators", "key"),
)
#: Fields of bytes with a message in them, which the members of a group exchange.
_INNER = {
    "metadata": ConsumerProtocolSubscription,
    "member_metadata": ConsumerProtocolSubscription,
    "assignment": ConsumerProtocolAssignment,
    "member_assignment": ConsumerProtocolAssignment,
}
#: The types of resources that have such a name.
_NAMED_RESOURCES = (ConfigResourceType.TOPIC, ConfigResourceType.GROUP)
#: How Kafka's own topics begin, which belong to no pipeline.
_INTERNAL = "__"
#: Before the name of a topic or group of another pipeline; a topic's name never contains it.
_FOREIGN = "/"

Rename = Callable[[str], str]
#: Takes a field's value, and the version of the message that it is in.
Change = Callable[[Any, Rename, int | None], Any]


def full_name(pipeline: str, short: str) -> str:
    """What a topic, group or transactional id of a pipeline is called in Kafka.

    >>> full_name("fraud", "app_messages"), full_name("", "app_messages")
    ('fraud.app_messages', 'app_messages')
    >>> full_name("fraud", "__consumer_offsets"), full_name("fraud", "/churn.predictions")
    ('__consumer_offsets', 'churn.predictions')
    """
    if not pipeline or short.startswith(_INTERNAL):
        return short
    return short[1:] if short.startswith(_FOREIGN) else f"{pipeline}.{short}"


def all_topics(pipeline: str) -> str:
    """The topics of a pipeline as text for the user.

    >>> all_topics("fraud"), all_topics("")
    ('the topics fraud.*', 'the topics')
    """
    return f"the topics {full_name(pipeline, '*')}" if pipeline else "the topics"


def short_name(pipeline: str, full: str) -> str:
    """What a pipeline calls a topic, group or transactional id; the inverse of `full_name`.

    >>> [short_name("fraud", name) for name in ("fraud.trainer", "__consumer_offsets", "trainer")]
    ['trainer', '__consumer_offsets', '/trainer']
    """
    if not pipeline or full.startswith(_INTERNAL):
        return full
    prefix = f"{pipeline}."
    return full.removeprefix(prefix) if full.startswith(prefix) else f"{_FOREIGN}{full}"


def translate(conn: KafkaConnection, pipeline: str) -> None:
    """Translate all that a connection sends and receives, from its first request on."""
    connection_made = conn.connection_made

    def translating(transport: KafkaTCPTransport) -> None:
        connection_made(transport)
        parser = conn.parser
        send_request, receive_bytes = parser.send_request, parser.receive_bytes
        parser.send_request = lambda request: send_request(
            renamed(request, lambda short: full_name(pipeline, short))
        )
        parser.receive_bytes = lambda data: [
            (number, renamed(response, lambda full: short_name(pipeline, full)))
            for number, response in receive_bytes(data)
        ]

    if pipeline:
        conn.connection_made = translating


def renamed(message: Any, rename: Rename, version: int | None = None) -> Any:
    """A request, a response or a part of one with other names.

    The message itself stays as it is: the client may send it again.

    Args:
        message: The message or its part.
        rename: Returns the other name.
        version: That of the whole message, if this is a part of it.
    """
    fields = _fields(message.__class__)
    if not fields:
        return message
    version = message.version if version is None else version
    changed = copy.copy(message)
    for name, change in fields:
        if name == "resource_name" and message.resource_type not in _NAMED_RESOURCES:
            continue
        if value := getattr(message, name):
            setattr(changed, name, change(value, rename, version))
    return changed


@cache
def _fields(kind: type) -> tuple[tuple[str, Change], ...]:
    """The fields of a kind of message that have names in them, and how to change each."""
    struct = getattr(kind, "_struct", None)
    if struct is None:  # what SASL exchanges
        return ()
    found = []
    for name, field in struct.fields.items():
        change = _change(struct._name, name, field)
        if change is not None:
            found.append((name, change))
    return tuple(found)


def _change(owner: str, name: str, field: BaseField) -> Change | None:
    """How to change the value of a field; None if there is no name in it."""
    if field.is_struct_array() or field.is_struct():
        kind = field.data_class
        if not _fields(kind):
            return None
        return _in_list(kind) if field.is_struct_array() else renamed
    if field.type_str == "bytes":
        return _in_bytes(_INNER[name]) if name in _INNER else None
    if field._entity_type in _NAMES or name in _MORE_NAMES or (owner, name) in _MORE_NAMES_OF:
        return _each if field.is_array() else _one
    return None


def _one(name: str, rename: Rename, version: int | None) -> str:
    return rename(name)


def _each(names: Iterable[str], rename: Rename, version: int | None) -> list[str]:
    return [rename(name) for name in names]


def _in_list(kind: type[DataContainer]) -> Change:
    def change(parts: Iterable[Any], rename: Rename, version: int | None) -> list[DataContainer]:
        return [renamed(as_kind(part, version), rename, version) for part in parts]

    def as_kind(part: Any, version: int | None) -> DataContainer:
        """The client may give a part as a tuple, or as the only value of one."""
        if isinstance(part, DataContainer):
            return part
        return kind(*(part if isinstance(part, tuple) else (part,)), version=version)

    return change


def _in_bytes(kind: type[ApiData]) -> Change:
    def change(content: Any, rename: Rename, version: int | None) -> bytes:
        if not isinstance(content, DataContainer):  # the client encodes it itself when it sends
            content = kind.decode(bytes(content))
        return bytes(renamed(content, rename).encode())

    return change
