"""The options of the charts (https://echarts.apache.org/en/option.html), from the figures."""

from collections.abc import Mapping, Sequence
from typing import Literal

from monitor.cluster import Point
from monitor.learning import Gain, Model
from ops.explain import Contributions
from train.input_drift import SOME, STRONG, Shift
from utils.message_store.summaries import Block

Options = dict[str, object]
#: Colours that people with colour blindness can distinguish, on light and on dark:
#: Okabe and Ito, "Color universal design", 2008.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#b07aa1"),
    "#8b93a1",
)
#: How many points a curve over time has, about.
DRAWN = 120
#: How many contributions a chart has; the rest are added up.
CONTRIBUTIONS = 14


def time_chart(
    series: Mapping[str, tuple[str, Sequence[tuple[float, float | None]]]], unit: str
) -> Options:
    """Lines over time.

    Args:
        series: By name, the colour and the points: seconds since 1970, and a value or a gap.
        unit: Of the values.
    """
    return {
        **_frame(list(series) if len(series) > 1 else []),
        "xAxis": {"type": "time", **_quiet(), "axisLabel": {"hideOverlap": True}},
        "yAxis": {"type": "value", "name": unit, "min": 0, **_axis()},
        "series": [
            _line(name, colour, [[round(at * 1000), _rounded(value)] for at, value in points])
            for name, (colour, points) in series.items()
        ],
    }


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `DRAWN` points with the last one among them: a chart has no more pixels for them.

    The same points are chosen again and again as newer ones come, so that curves keep their form.
    """
    step = -(-len(points) // DRAWN)
    kept = [point for point in points[:-1] if round(point.at) % step == 0]
    return [*kept, *points[-1:]]


def traffic(points: Sequence[Point]) -> Options:
    """Messages and predictions a second."""
    points = thinned(points)
    return time_chart(
        {
            "messages": (ORANGE, [(one.at, one.messages) for one in points]),
            "predictions": (BLUE, [(one.at, one.predictions) for one in points]),
        },
        "a second",
    )


def latency(points: Sequence[Point]) -> Options:
    """The latency's median and 99th percentile."""
    points = thinned(points)
    return time_chart(
        {
            "p99": (ORANGE, [(one.at, one.p99) for one in points]),
            "p50": (BLUE, [(one.at, one.median) for one in points]),
        },
        "ms",
    )


def lag(points: Sequence[Point]) -> Options:
    """Messages that wait."""
    found = [(one.at, one.lag) for one in thinned(points)]
    return time_chart({"waiting": (PURPLE, found)}, "messages")


def live_loss(blocks: Sequence[Block]) -> Options:
    """The log loss of consecutive predictions with its 95 % interval, and their accuracy."""
    rows = [
        (
            one.last_at,
            one.losses.log_loss,
            1.96 * (one.losses.standard_error or 0.0),
            one.losses.accuracy,
        )
        for one in blocks
    ]
    low = [[at, _rounded(max(0.0, (loss or 0.0) - more))] for at, loss, more, _ in rows]
    width = [[at, _rounded(min(2 * more, (loss or 0.0) + more))] for at, loss, more, _ in rows]
    band = {"type": "line", "stack": "band", "symbol": "none", "lineStyle": {"opacity": 0}}
    return {
        **_frame(["log loss", "accuracy"]),
        "xAxis": {"type": "time", **_quiet(), "axisLabel": {"hideOverlap": True}},
        "yAxis": [
            {"type": "value", "name": "nats", "min": 0, **_axis()},
            {"type": "value", "name": "accuracy", "min": 0, "max": 1, **_quiet()},
        ],
        "series": [
            {**band, "name": "low", "data": low, "tooltip": {"show": False}},
            {
                **band,
                "name": "95 %",
                "data": width,
                "areaStyle": {"color": BLUE, "opacity": 0.18},
                "tooltip": {"show": False},
            },
            _line("log loss", BLUE, [[at, _rounded(loss)] for at, loss, _, _ in rows]),
            {
                **_line("accuracy", GREEN, [[at, _rounded(right)] for at, *_, right in rows]),
                "yAxisIndex": 1,
                "lineStyle": {"width": 1.5, "type": "dashed"},
            },
        ],
    }


def gains(found: Sequence[Gain]) -> Options:
    """What was served, and what the first model would have had."""
    return {
        **_frame(["served", "first model"], named=True),
        "xAxis": {"type": "value", "name": "outcomes", "min": "dataMin", **_below()},
        "yAxis": {"type": "value", "name": "nats", "scale": True, **_axis()},
        "series": [
            _line("first model", GREY, [[one.until, _rounded(one.first)] for one in found]),
            _line("served", BLUE, [[one.until, _rounded(one.served)] for one in found]),
        ],
    }


def model_line(models: Sequence[Model], most: int = 60) -> Options:
    """The gate's figures of the newest models: challenger and champion on the same outcomes.

    Args:
        models: Newest first.
        most: How many to show.
    """
    shown = list(reversed(models[:most]))

    def points(kind: Literal["accepted", "refused"]) -> list[list[object]]:
        return [
            [str(one.line.model_id), _rounded(_loss(one, "challenger"))]
            for one in shown
            if one.line.accepted == (kind == "accepted") and _loss(one, "challenger") is not None
        ]

    champion = [
        [str(one.line.model_id), _rounded(value)]
        for one in shown
        if (value := _loss(one, "champion")) is not None
    ]
    dots = {"type": "scatter", "symbolSize": 9}
    return {
        **_frame(["accepted", "refused", "what was served"], named=True),
        "xAxis": {
            "type": "category",
            "name": "model",
            "data": [str(one.line.model_id) for one in shown],
            **_below(),
            "axisLabel": {"hideOverlap": True},
        },
        "yAxis": {"type": "value", "name": "nats", "scale": True, **_axis()},
        "series": [
            {
                **_line("what was served", GREY, champion),
                "lineStyle": {"width": 1.5, "type": "dashed"},
            },
            {**dots, "name": "accepted", "itemStyle": {"color": GREEN}, "data": points("accepted")},
            {
                **dots,
                "name": "refused",
                "symbol": "diamond",
                "itemStyle": {"color": RED},
                "data": points("refused"),
            },
        ],
    }


def _loss(one: Model, which: Literal["challenger", "champion"]) -> float | None:
    metrics = getattr(one.line.metrics, which)
    return None if metrics is None else metrics.log_loss


def shifts(found: Sequence[Shift]) -> Options:
    """The shift of each column and of the predictions, the largest on top."""
    shown = list(reversed(found))
    colours = {"none": BLUE, "some": ORANGE, "strong": RED}
    return {
        **_frame([]),
        "grid": {"left": 8, "right": 40, "top": 24, "bottom": 24, "containLabel": True},
        "xAxis": {"type": "value", "name": "PSI", "min": 0, **_axis(), **_middle()},
        "yAxis": {"type": "category", "data": [one.name for one in shown], **_names()},
        "series": [
            {
                "type": "bar",
                "name": "PSI",
                "barMaxWidth": 14,
                "data": [
                    {"value": _rounded(one.psi), "itemStyle": {"color": colours[one.word]}}
                    for one in shown
                ],
                "markLine": {
                    "silent": True,
                    "symbol": "none",
                    "lineStyle": {"color": GREY, "type": "dashed"},
                    "data": [
                        {"xAxis": SOME, "label": {"formatter": "some"}},
                        {"xAxis": STRONG, "label": {"formatter": "strong"}},
                    ],
                },
            }
        ],
    }


def contributions(found: Contributions) -> Options:
    """What each feature adds to the log-odds, the largest on top."""
    shown = list(found.features[:CONTRIBUTIONS])
    bars = [(f"{one.name} = {_value(one.value)}", one.contribution) for one in shown]
    if rest := found.features[CONTRIBUTIONS:]:
        bars.append((f"{len(rest)} more", sum(one.contribution for one in rest)))
    bars.reverse()
    return {
        **_frame([]),
        "grid": {"left": 8, "right": 40, "top": 24, "bottom": 24, "containLabel": True},
        "xAxis": {"type": "value", "name": "log-odds", **_axis(), **_middle()},
        "yAxis": {"type": "category", "data": [name for name, _ in bars], **_names()},
        "series": [
            {
                "type": "bar",
                "name": f"for {found.of}",
                "barMaxWidth": 16,
                "data": [
                    {
                        "value": _rounded(value),
                        "itemStyle": {"color": BLUE if value >= 0 else ORANGE},
                    }
                    for _, value in bars
                ],
            }
        ],
    }


def _value(value: object) -> str:
    return "missing" if value is None else str(value)[:40]


def _frame(names: Sequence[str], *, named: bool = False) -> Options:
    """What all charts share; `named` leaves room for a name below the axis."""
    return {
        "animation": False,
        "aria": {"enabled": True},
        "legend": {"show": bool(names), "data": list(names), "top": 0, "right": 0},
        "tooltip": {"trigger": "axis", "confine": True},
        "grid": {
            "left": 8,
            "right": 16,
            "top": 40,
            "bottom": 26 if named else 8,
            "containLabel": True,
        },
    }


def _line(name: str, colour: str, data: Sequence[object]) -> Options:
    return {
        "type": "line",
        "name": name,
        "data": data,
        "symbol": "circle",
        "symbolSize": 4,
        "showSymbol": len(data) < 3,
        "itemStyle": {"color": colour},
        "lineStyle": {"width": 2, "color": colour},
    }


def _axis() -> Options:
    return {
        "splitLine": {"lineStyle": {"color": GREY, "opacity": 0.25}},
        "nameGap": 8,
        "nameTextStyle": {"align": "left"},
    }


def _quiet() -> Options:
    return {"splitLine": {"show": False}, "nameGap": 8}


def _middle() -> Options:
    return {"nameLocation": "middle", "nameGap": 26}


def _below() -> Options:
    return {"splitLine": {"show": False}, **_middle()}


def _names() -> Options:
    return {"axisLabel": {"width": 220, "overflow": "truncate"}, "axisTick": {"show": False}}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
