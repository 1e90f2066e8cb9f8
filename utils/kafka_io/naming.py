"""Puts the pipeline's name before each topic, group and transactional id that Kafka sees.

With it several pipelines share a cluster: `app_messages` of the pipeline `fraud` is the topic
`fraud.app_messages`. All code uses the short names. Requests get the full ones right before they
are encoded, and responses the short ones right after they are decoded, so that no client and no
request is left out. Kafka's protocol says itself which fields hold such a name.

Records hold no names here: the cost is some 10 us for each request and each response.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
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


def full_names(pipeline: str, short: Iterable[str]) -> str:
    """Names of a pipeline as text for the user.

    >>> full_names("fraud", ["app_messages", "outcomes"])
    'fraud.app_messages, fraud.outcomes'
    """
    return ", ".join(full_name(pipeline, name) for name in short)


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
    to_full, to_short = partial(full_name, pipeline), partial(short_name, pipeline)

    def translating(transport: KafkaTCPTransport) -> None:
        connection_made(transport)
        encode, decode = conn.parser.send_request, conn.parser.receive_bytes

        def send_request(request: Any) -> Any:
            renaming = Renaming(request, to_full)
            try:
                return encode(request)
            finally:
                renaming.undo()  # the client may send it again

        def receive_bytes(data: bytes) -> Any:
            responses = decode(data)
            for _, response in responses:
                Renaming(response, to_short)
            return responses

        conn.parser.send_request, conn.parser.receive_bytes = send_request, receive_bytes

    if pipeline:
        conn.connection_made = translating


class Renaming:
    """Gives a request or response other names, until that is undone.

    Copying the messages would take five times as long.

    Args:
        message: The request or response; what SASL exchanges has no names.
        rename: Returns the other name.
    """

    def __init__(self, message: Any, rename: Callable[[str], str]) -> None:
        self.rename = rename
        self.version = getattr(message, "version", None)
        self._before: list[tuple[Any, str, Any]] = []
        self.visit(message)

    def visit(self, part: Any) -> None:
        """Give a part of the message other names."""
        for name, change in _fields(part.__class__):
            if name == "resource_name" and part.resource_type not in _NAMED_RESOURCES:
                continue
            value = getattr(part, name)
            if value and (other := change(self, value)) is not value:
                self._before.append((part, name, value))
                setattr(part, name, other)

    def undo(self) -> None:
        """Give the message its names back."""
        for part, name, value in self._before:
            setattr(part, name, value)


#: Returns another value for a field, or the same one if it has changed within.
Change = Callable[[Renaming, Any], Any]


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
        return partial(_in_list, kind) if field.is_struct_array() else _in_part
    if field.type_str == "bytes":
        return partial(_in_bytes, _INNER[name]) if name in _INNER else None
    if field._entity_type in _NAMES or name in _MORE_NAMES or (owner, name) in _MORE_NAMES_OF:
        return _each if field.is_array() else _one
    return None


def _one(renaming: Renaming, name: str) -> str:
    return renaming.rename(name)


def _each(renaming: Renaming, names: Iterable[str]) -> list[str]:
    return [renaming.rename(name) for name in names]


def _in_part(renaming: Renaming, part: DataContainer) -> DataContainer:
    renaming.visit(part)
    return part


def _in_list(kind: type[DataContainer], renaming: Renaming, parts: Any) -> Any:
    if not all(isinstance(part, DataContainer) for part in parts):
        # The client may give a part as a tuple, or as the only value of one.
        parts = [
            kind(*(part if isinstance(part, tuple) else (part,)), version=renaming.version)
            for part in parts
        ]
    for part in parts:
        renaming.visit(part)
    return parts


def _in_bytes(kind: type[ApiData], renaming: Renaming, content: Any) -> bytes:
    if isinstance(content, DataContainer):  # which the client would encode itself
        content = content.encode()
    inner = kind.decode(bytes(content))
    renaming.visit(inner)
    return bytes(inner.encode())
