"""Keeps two homes from sharing the topics and groups of one cluster.

The first script that finds `retrain_topic` without an owner writes a mark that names its home.
Every other event names its writer's home as well, because the mark may expire. Who owns the
topics:

1. the home of the newest mark of a take-over;
2. else the first home that the log names.

So of two homes that mark the topics at once, the first in the log owns them, and events of a
former owner do not bring it back.
"""

from collections.abc import Collection
from contextlib import suppress
from typing import NamedTuple

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from utils import home, messages
from utils.durable_files import read_state, replace_file
from utils.errors import UserError, one_line
from utils.home import Home
from utils.interpreter import decode_text
from utils.kafka_io import log_scan
from utils.kafka_io.clients import KafkaUnavailable, open_admin
from utils.kafka_io.log_reader import LogReader
from utils.kafka_io.naming import all_topics, full_name
from utils.kafka_io.senders import announce
from utils.messages import HomeMark, ModelLoaded, Rollback, TrainingCompleted
from utils.settings import Kafka, Settings

TOPIC = TopicPartition(messages.RETRAIN_TOPIC, 0)
#: The file in data/ with what was read so far, so that a long log is not read at each start.
NOTES = ".retrain_topic.json"
#: It is written again after that many more records; so many are read in some 20 ms.
NOTE_EVERY = 1_000


class ForeignTopics(UserError):
    """The topics belong to another home."""


class Ownership(msgspec.Struct):
    """What the events on `retrain_topic` say about homes and models.

    >>> found = Ownership()
    >>> for offset, home in enumerate("ab"):
    ...     found.observe(HomeMark(home=home, path=f"/{home}"), offset)
    >>> found.owner
    'a'
    >>> found.observe(HomeMark(home="b", path="/b", taken_over=True), 2)
    >>> found.observe(ModelLoaded(model_id=3, home="a"), 3)
    >>> found.owner, found.models
    ('b', {3})

    Attributes:
        owner: The id of the home that owns the topics; empty if none is named.
        path: The owner's folder when it marked the topics; empty if that has expired.
        named_at: The offset of the record that makes it the owner.
        models: The numbers of all models that are named.
        offset: The next offset to read; 0 if there is no such topic.
        topic_id: Kafka's id of the topic that was read.
    """

    owner: str = ""
    path: str = ""
    named_at: int = -1
    models: set[int] = msgspec.field(default_factory=set)
    offset: int = 0
    topic_id: str = ""

    def observe(self, event: messages.Event, offset: int) -> None:
        """Take the next event of the log into account."""
        taken_over = isinstance(event, HomeMark) and event.taken_over
        if event.home and (taken_over or not self.owner):
            self.owner, self.named_at, self.path = event.home, offset, ""
        if isinstance(event, HomeMark) and event.home == self.owner:
            self.path = event.path
        if isinstance(event, TrainingCompleted | ModelLoaded | Rollback):
            self.models.add(event.model_id)
        if isinstance(event, Rollback) and event.from_model_id is not None:
            self.models.add(event.from_model_id)


class Claim(NamedTuple):
    """The right of a home to its topics.

    Attributes:
        home: The id of the home, which signs its events.
        models: The numbers of all models that `retrain_topic` names.
        former: The id of the home from which the topics were taken over by this; or empty.
    """

    home: str
    models: Collection[int]
    former: str = ""


def check_owner(settings: Settings) -> None:
    """Check that the topics are not another home's; nothing is written to them.

    Raises:
        ForeignTopics: They are another home's.
        KafkaUnavailable: No broker answers.
    """
    _refuse_if_foreign(settings, home.identify(settings).id, _read(settings))


def claim_topics(settings: Settings, *, take_over: bool = False) -> Claim:
    """Check that the topics are this home's, and mark them if they are nobody's.

    Topics that do not exist yet are not marked.

    Args:
        settings: The pipeline's settings.
        take_over: Make them this home's, also if they are another one's.

    Raises:
        ForeignTopics: They are another home's, or scripts of that home still run.
        KafkaUnavailable: No broker answers.
    """
    identity, found = home.identify(settings), _read(settings)
    own = identity.id
    former = found.owner if found is not None and found.owner != own else ""
    if take_over:
        _take_over(settings, identity, former)
    else:
        _refuse_if_foreign(settings, own, found)
    if found is None:
        return Claim(own, ())
    if found.owner == own and found.path:
        return Claim(own, found.models)
    folder = decode_text(str(settings.home))  # the locale may be another one
    mark = HomeMark(home=own, path=folder, taken_over=bool(former))
    marked = _read(settings, at_least=announce(settings, mark) + 1)
    _refuse_if_foreign(settings, own, marked)  # another home may have been first
    return Claim(own, found.models, former)


def _read(settings: Settings, at_least: int = 0) -> Ownership | None:
    """Read `retrain_topic` on from where it was last read; None if there is no such topic.

    Args:
        settings: The pipeline's settings.
        at_least: Wait until the records before this offset can be read.
    """
    path = settings.data_dir / NOTES
    found = read_state(path, Ownership) or Ownership()
    noted = found.offset
    try:
        with LogReader(settings.kafka, [TOPIC.topic]) as reader:
            ends = {tp.partition: max(end, at_least) for tp, end in reader.ends().items()}
            if not ends:
                return None
            topic_id = reader.topic_ids().get(TOPIC.topic, "")
            if topic_id == found.topic_id and reader.position(TOPIC) <= found.named_at:
                reader.seek(TOPIC, noted)
            else:  # the first time, or the topic was recreated, or its owner's record has expired
                found, noted = Ownership(topic_id=topic_id), 0
            for record in log_scan.records_before(reader, TOPIC.topic, ends):
                with suppress(messages.BadRecord):
                    found.observe(messages.decode_event(record.value), record.offset)
            found.offset = reader.position(TOPIC)
    except KafkaError as error:
        topic = full_name(settings.kafka.name, TOPIC.topic)
        raise KafkaUnavailable(f"{topic} cannot be read: {one_line(error)}") from None
    if topic_id and found.offset - noted >= NOTE_EVERY:
        with suppress(OSError):  # then it is read again
            replace_file(path, msgspec.json.encode(found))
    return found


def _refuse_if_foreign(settings: Settings, own: str, found: Ownership | None) -> None:
    if found is None or found.owner in ("", own):
        return
    whose = f"{found.path} (id {found.owner[:8]})" if found.path else f"with id {found.owner[:8]}"
    kafka = settings.kafka
    raise ForeignTopics(
        f"{all_topics(kafka.name)} at {kafka.bootstrap_servers} belong to the home {whose}, not to "
        f"{settings.home} (id {own[:8]}): use that home, another PIPELINE_NAME or cluster, or "
        "`python initialize.py --take-over`"
    )


def _take_over(settings: Settings, own: Home, former: str) -> None:
    """Give the home the pipeline's name; scripts that run would go on with what was before."""
    if former:
        _check_unused(settings.kafka)
    if own.name != settings.kafka.name:
        _check_unused(settings.kafka.model_copy(update={"name": own.name}))
        home.rename(settings)


def _check_unused(kafka: Kafka) -> None:
    """Check that no script of a pipeline runs."""
    admin = open_admin(kafka)
    try:
        there = {group["group_id"] for group in admin.list_groups()} & set(messages.GROUPS)
        described = admin.describe_groups(sorted(there)) if there else {}
    except KafkaError as error:
        raise KafkaUnavailable(f"cannot see which scripts are running: {one_line(error)}") from None
    finally:
        admin.close()
    if running := [name for name, group in sorted(described.items()) if group["members"]]:
        groups = ", ".join(full_name(kafka.name, group) for group in running)
        raise ForeignTopics(f"scripts are running ({groups}): stop them first")
