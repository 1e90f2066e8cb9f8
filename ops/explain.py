"""Why this prediction? Everything that is known of one request, and what each feature did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from train.evaluate import is_validation_row
from utils import messages
from utils.errors import UserError
from utils.kafka_io import KafkaUnavailable, TopicPartition, log_scan
from utils.message_store import MessageStore, StoreError
from utils.message_store.ingest import TOPICS, RecordDecoder
from utils.model_store import Bundle, ModelStore, predicted_codes
from utils.settings import Settings

#: Contributions add up to the log-odds, and so to the probability, but for rounding.
TOLERANCE = 1e-9


@dataclass
class Found:
    """What is known of a request, wherever it was looked up.

    Attributes:
        source: Where that was, for the reader.
        sent: How many messages had the request_id; None where that is not known.
        message: partition, offset, timestamp, values by column (None for one that could
            not be used), rejected (why it could not, or None); None without a message.
        outcome: outcome, partition, offset, timestamp; the last three are None for an
            outcome inside the message. None while it is not known.
        predictions: model_id, probability, partition, offset, timestamp; oldest first.
        answer: The one of `predictions` that answers `message`.
    """

    source: str
    sent: int | None = None
    message: dict[str, Any] | None = None
    outcome: dict[str, Any] | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list)
    answer: dict[str, Any] | None = None

    @property
    def whole(self) -> bool:
        """Whether both the message and its prediction are there."""
        return self.message is not None and self.answer is not None


def why(settings: Settings, request_id: str, *, log: bool = False) -> dict[str, Any]:
    """Explain a prediction.

    The message store is asked first; what it does not have is looked for in the log.

    Args:
        settings: Say where the models, the store and the log are.
        request_id: Whose prediction.
        log: Read the log whatever the store has: it alone knows of every message that
            had this request_id.

    Returns:
        request_id, source, sent, message, predictions, answer, outcome (see `Found`);
        model (see `_model`); contributions and recomputed (see `_contributions`; None
        without an answer or its bundle).

    Raises:
        UserError: No such request, or nowhere to look it up.
        ModelStoreError: The models cannot be read.
    """
    store = ModelStore(settings.models_dir)
    serving = store.load_current()
    found = _look_up(settings, serving, request_id, log)
    told: dict[str, Any] = {"request_id": request_id, **vars(found)}
    told |= {"model": None, "contributions": None, "recomputed": None}
    if found.answer is None:
        return told
    model_id = found.answer["model_id"]
    bundle = store.load(model_id) if model_id in store.on_disk() else None
    told["model"] = _model(store, model_id, bundle, request_id)
    classes = (bundle or serving).features.classes
    for each in found.predictions:
        each |= _decision(each["probability"], classes)
    if bundle is not None and found.message is not None and found.message["values"] is not None:
        told |= _contributions(bundle, found.message["values"], found.answer["probability"])
    return told


def _decision(probability: float | list[float], classes: Sequence[str]) -> dict[str, Any]:
    """The class that a probability stands for, by the predictor's rule."""
    code = int(predicted_codes(np.array([probability]))[0])
    return {"prediction": code, "label": classes[code] if code < len(classes) else None}


# Looking it up.


def _look_up(settings: Settings, serving: Bundle, request_id: str, log: bool) -> Found:
    stored, trouble = None, ""
    if not log:
        try:
            stored = _in_store(settings, serving, request_id)
        except StoreError as error:
            trouble = str(error)
    if stored is not None and stored.whole:
        return stored
    try:
        found = _in_log(settings, serving, request_id)
    except KafkaUnavailable as error:
        if stored is None:
            also = f"{trouble}; " if trouble else "" if log else "not in the message store; "
            raise UserError(f"{request_id!r}: {also}{error}") from None
        stored.source += f"; the log could not be read: {error}"
        return stored
    if found is None and stored is None:
        raise UserError(f"no request {request_id!r}, neither in the message store nor in the log")
    return found or stored or Found("")


def _in_store(settings: Settings, serving: Bundle, request_id: str) -> Found | None:
    with MessageStore.open(settings.messages_url, serving.features) as store:
        row = store.request(request_id)
    if row is None:
        return None
    found = Found("the message store, which keeps the newest of a request_id sent twice")
    if row["values"] is not None:
        found.message = {
            **{name: row[name] for name in ("partition", "offset", "timestamp", "values")},
            "rejected": None,
        }
    if row["model_id"] is not None:
        found.answer = {
            "model_id": row["model_id"],
            "probability": row["probability"],
            **{name: row[f"prediction_{name}"] for name in ("partition", "offset", "timestamp")},
        }
        found.predictions = [found.answer]
    if row["outcome"] is not None:
        found.outcome = {
            "outcome": row["outcome"],
            **{name: row[f"outcome_{name}"] for name in ("partition", "offset", "timestamp")},
        }
    return found


def _in_log(settings: Settings, serving: Bundle, request_id: str) -> Found | None:
    """Read everything; what was decoded for the serving model's columns counts."""
    same: dict[str, list[Any]] = {}
    for topic in TOPICS:
        records = same.setdefault(topic, [])
        for record in log_scan.scan(settings.kafka, topic, log_scan.bounds(settings.kafka, topic)):
            if messages.request_id_of(record.value) == request_id:
                records.append(record)
        records.sort(key=lambda record: (record.partition, record.offset))
    sent = same[messages.APP_MESSAGES]
    if not any(same.values()):
        return None
    found = Found("the log", sent=len(sent))
    decoder = RecordDecoder(serving.features)
    for record in same[messages.PREDICTIONS]:
        for row in decoder.batch({_place(record): [record]}).predictions:
            found.predictions.append({"model_id": row[1], "probability": row[2], **_where(record)})
    if sent:
        _describe_newest(found, sent, serving, decoder)
    for record in same[messages.OUTCOMES]:  # the last one counts, whatever was inside
        for late in decoder.batch({_place(record): [record]}).outcomes:
            if late[1] in serving.features.classes:
                found.outcome = {"outcome": late[1], **_where(record)}
    return found


def _describe_newest(
    found: Found, sent: Sequence[Any], serving: Bundle, decoder: RecordDecoder
) -> None:
    """The newest of the messages, and its answer: they keep each other's order."""
    record, usable = sent[-1], 0
    for each in sent:
        rows = decoder.batch({_place(each): [each]}).messages
        usable += bool(rows) and each.partition == record.partition
    found.message = {**_where(record), "values": None, "rejected": None}
    if not rows:
        found.message["rejected"] = _rejection_reason(record, serving)
        return
    found.message["values"] = dict(zip(serving.features.columns, rows[0].values, strict=True))
    if rows[0].outcome in serving.features.classes:
        nowhere = dict.fromkeys(("partition", "offset", "timestamp"))
        found.outcome = {"outcome": rows[0].outcome, **nowhere}
    answers = [each for each in found.predictions if each["partition"] == record.partition]
    if len(answers) >= usable:
        found.answer = answers[-1]


def _rejection_reason(record: Any, serving: Bundle) -> str:
    try:
        serving.decoder(record.value)
    except messages.BadRecord as reason:
        return str(reason)
    raise AssertionError("a message that is not in the batch decodes")


def _place(record: Any) -> TopicPartition:
    return TopicPartition(record.topic, record.partition)


def _where(record: Any) -> dict[str, Any]:
    return {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
    }


# The model and what it made of the message.


def _model(
    store: ModelStore, model_id: int, bundle: Bundle | None, request_id: str
) -> dict[str, Any]:
    """What a prediction's model was made of, from its manifest or the history.

    Returns:
        model_id, pruned, parent_id, created, accepted, batch_ids, gate, metrics, rows,
        base_data_sha256, offsets; held_out: whether rows of this request_id are for
        validation and never trained on.
    """
    lines = (line for line in store.history() if line.get("model_id") == model_id)
    known: Mapping[str, Any] = next(lines, {})
    if bundle is not None:
        known = {**bundle.manifest, **bundle.manifest["training"]}
    names = ("parent_id", "created", "accepted", "batch_ids", "gate", "metrics")
    learnt = ("rows", "base_data_sha256", "offsets")
    return {
        "model_id": model_id,
        "pruned": bundle is None,
        **{name: known.get(name) for name in (*names, *learnt)},
        "held_out": bool(is_validation_row([request_id])[0]),
    }


def _contributions(
    bundle: Bundle, values: Mapping[str, Any], recorded: float | list[float]
) -> dict[str, Any]:
    """Score a message again and take the score apart.

    Returns:
        contributions: of (the class whose log-odds they make up; with several classes,
        its score before the softmax), base_value, features (name, value, contribution;
        the largest first), sum, probability (that of the sum), adds_up.
        recomputed: probability, same_bits (as the prediction's record).
    """
    features = bundle.features
    message = msgspec.json.encode({"request_id": "why", "data": values})
    matrix = features.transform_rows([bundle.decoder(message).data])
    again = bundle.score(matrix)[0]
    code = _decision(again.tolist(), features.classes)["prediction"] if again.ndim else 1
    width = len(features.feature_names) + 1  # the last one is the base value
    parts = np.asarray(bundle.booster.predict(matrix, pred_contrib=True, num_threads=1))
    parts = parts.reshape(-1, width)  # a row for each class
    sums = parts.sum(axis=1)
    shares = np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum()
    probability = float(shares[code] if again.ndim else 1 / (1 + np.exp(-sums[0])))
    of_class = parts[code if again.ndim else 0].tolist()
    shown = zip(features.feature_names, _raw_values(bundle, values), of_class, strict=False)
    return {
        "contributions": {
            "of": features.classes[code],
            "base_value": of_class[-1],
            "features": sorted(
                ({"name": n, "value": value, "contribution": part} for n, value, part in shown),
                key=lambda row: -abs(row["contribution"]),
            ),
            "sum": float(sums[code if again.ndim else 0]),
            "probability": probability,
            "adds_up": abs(probability - float(again[code] if again.ndim else again)) <= TOLERANCE,
        },
        "recomputed": {
            "probability": again.tolist(),
            "same_bits": np.asarray(recorded, np.float64).tobytes() == again.tobytes(),
        },
    }


def _raw_values(bundle: Bundle, values: Mapping[str, Any]) -> list[Any]:
    """The raw value beside each feature; of a cross, both."""
    crosses = msgspec.json.decode(bundle.features.to_json())["crosses"]
    pairs = ([_text(values.get(name)) for name in cross["columns"]] for cross in crosses)
    return [values.get(name) for name in bundle.features.columns] + [" x ".join(p) for p in pairs]


def _text(value: Any) -> str:
    return "missing" if value is None else str(value)


# For people.


def show(told: Mapping[str, Any], console: Console) -> None:
    """Print what `why` returns."""
    say = _Lines(console)
    say("request", f"{told['request_id']!r}, from {told['source']}")
    if (told["sent"] or 0) > 1:
        say("", f"sent {told['sent']} times; this is about the newest")
    _show_message(say, told["message"])
    _show_predictions(say, told)
    outcome = told["outcome"]
    if outcome is None:
        say("outcome", "not known yet")
    else:
        inside = outcome["offset"] is None
        where = "inside the message" if inside else _at(messages.OUTCOMES, outcome)
        say("outcome", f"{outcome['outcome']}, {where}")
    if told["model"] is not None:
        _show_model(say, told["model"])
    if told["contributions"] is not None:
        _show_contributions(say, console, told)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, name: str, text: str) -> None:
        self._console.print(f"[bold]{name:<12}[/]{escape(text)}", highlight=False, soft_wrap=True)


def _show_message(say: _Lines, message: Mapping[str, Any] | None) -> None:
    if message is None:
        say("message", "none is known")
    elif message["rejected"] is not None:
        say("message", f"{_at(messages.APP_MESSAGES, message)}, rejected: {message['rejected']}")
    else:
        say("message", _at(messages.APP_MESSAGES, message))
        values = (f"{name}={_text(value)}" for name, value in message["values"].items())
        say("", ", ".join(values))


def _show_predictions(say: _Lines, told: Mapping[str, Any]) -> None:
    if not told["predictions"]:
        say("prediction", "none")
    for each in told["predictions"]:
        name = "prediction" if each is told["answer"] else "(another)"
        decided = f"{each['prediction']} ({each['label']}), " if "label" in each else ""
        say(
            name,
            f"{decided}probability {each['probability']!r}, by model {each['model_id']}; "
            f"{_at(messages.PREDICTIONS, each)}",
        )
    if told["predictions"] and told["answer"] is None:
        say("", "none of them answers the newest message")


def _show_model(say: _Lines, model: Mapping[str, Any]) -> None:
    accepted = {True: "accepted", False: "refused", None: "not in the history"}[model["accepted"]]
    parent = f"parent {model['parent_id']}" if model["parent_id"] else "no parent"
    say("model", f"{model['model_id']}, {parent}, made {model['created']}, {accepted}")
    if model["pruned"]:
        say("", "PRUNED: its bundle is no longer there, so no contributions; the history remembers")
    read = [
        f"{topic}-{number} up to {end}"
        for topic, partitions in (model["offsets"] or {}).items()
        for number, end in partitions.items()
    ]
    base = str(model["base_data_sha256"])[:12]
    say("trained on", f"{model['rows']} rows: base data {base}..., {', '.join(read) or 'no log'}")
    held = "held out of training, for validation" if model["held_out"] else "for training"
    say("", f"rows of this request_id are {held}")
    metrics = model["metrics"] or {}
    for side in ("challenger", "champion"):
        figures = metrics.get(side) or {}
        if figures:
            name = "its figures" if side == "challenger" else "its parent's"
            say(name, ", ".join(f"{key} {_figure(value)}" for key, value in figures.items()))
    if model["gate"]:
        say("gate", ", ".join(f"{key} {_figure(value)}" for key, value in model["gate"].items()))


def _show_contributions(say: _Lines, console: Console, told: Mapping[str, Any]) -> None:
    parts, again = told["contributions"], told["recomputed"]
    table = Table(caption=f"what speaks for {escape(parts['of'])} (+) and against it (-)")
    for heading in ("feature", "value", "log-odds"):
        table.add_column(heading, justify="right" if heading == "log-odds" else "left")
    for row in parts["features"]:
        value = _text(row["value"])
        table.add_row(escape(row["name"]), escape(value), f"{row['contribution']:+.6f}")
    table.add_section()
    table.add_row("base value", "", f"{parts['base_value']:+.6f}")
    table.add_row("sum", "", f"{parts['sum']:+.6f}")
    console.print(table)
    agrees = "as predicted" if parts["adds_up"] else "NOT what the model predicts"
    say("adds up", f"the sum gives probability {parts['probability']!r}, {agrees} (to {TOLERANCE})")
    same = "the same bits" if again["same_bits"] else "NOT the same bits"
    say("recomputed", f"{again['probability']!r}, {same} as in the prediction's record")


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _at(topic: str, where: Mapping[str, Any]) -> str:
    then = datetime.fromtimestamp(where["timestamp"] / 1000, UTC).isoformat(timespec="milliseconds")
    return f"{topic}-{where['partition']} offset {where['offset']}, {then}"
