"""`/openapi.json`, and `/docs`, which shows it."""

import html
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from serving import openapi
from serving.bodies import JSON
from serving.openapi import Example, Place
from serving.rows import Scorer
from serving.schemas import Schema
from utils.settings import Serving

FOLDER = Path(__file__).resolve().parent
#: The lines of a text field: for so many characters each, and at most so many.
LINE, MOST_LINES = 80, 18
#: The page loads nothing, and asks this server alone.
POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(scorer: Scorer, name: str, limits: Serving) -> list[BaseRoute]:
    """Both routes.

    Args:
        scorer: Knows the model.
        name: The model's name in addresses of the Open Inference Protocol.
        limits: The settings.
    """
    template = Template((FOLDER / "docs.html").read_text("utf-8"))

    def document(request: Request) -> Schema:
        place = Place(str(request.base_url).rstrip("/"), name)
        return openapi.document(scorer.bundle, place, limits)

    async def as_json(request: Request) -> Response:
        return Response(openapi.encode(document(request)), media_type=JSON)

    async def as_page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        headers = {"content-security-policy": POLICY.format(nonce=nonce)}
        return HTMLResponse(render(document(request), template, nonce), headers=headers)

    return [Route("/openapi.json", as_json), Route("/docs", as_page)]


def render(found: Schema, template: Template, nonce: str) -> str:
    """The page of a document.

    Args:
        found: The document.
        template: The page's frame.
        nonce: Marks the page's own style and script.
    """
    info, components = _map(found["info"]), _map(found["components"])
    url = str(_maps(found["servers"])[0]["url"])
    parts = list(_operations(_map(found["paths"]), url, _map(components["responses"])))
    tags = [str(tag["name"]) for tag in _maps(found["tags"])]
    return template.substitute(
        nonce=nonce,
        title=_text(info["title"]),
        version=_text(info["version"]),
        description=_prose(info["description"]),
        navigation="".join(_navigation(tag, parts) for tag in tags),
        operations="".join(_group(tag, parts) for tag in tags),
        schemas="".join(
            _schema(name, _map(one)) for name, one in _map(components["schemas"]).items()
        ),
    )


class _Part:
    """An operation on the page."""

    def __init__(self, method: str, path: str, operation: Mapping[str, object]) -> None:
        self.method = method
        self.path = path
        self.operation = operation
        self.id = str(operation["operationId"])
        self.tag = str(_list(operation["tags"])[0])
        self.summary = str(operation["summary"])
        self.content = ""


def _operations(
    paths: Mapping[str, object], url: str, responses: Mapping[str, object]
) -> Iterator[_Part]:
    for path, item in paths.items():
        shared = _maps(_map(item).get("parameters", []))
        for method, operation in _map(item).items():
            if method == "parameters":
                continue
            part = _Part(method.upper(), path, _map(operation))
            parameters = [*shared, *_maps(part.operation.get("parameters", []))]
            part.content = "".join(
                (
                    f"<p>{_prose(part.operation['description'])}</p>",
                    _parameters(parameters),
                    _tries(part, url + _filled(path, parameters)),
                    _bodies(part.operation),
                    _answers(_map(part.operation["responses"]), responses),
                )
            )
            yield part


def _filled(path: str, parameters: Sequence[Mapping[str, object]]) -> str:
    for one in parameters:
        path = path.replace(f"{{{one['name']}}}", str(one.get("example")))
    return path


def _navigation(tag: str, parts: Sequence[_Part]) -> str:
    links = "".join(
        f'<li><a href="#{_text(part.id)}">{_method(part)} {_path(part.path)}</a></li>'
        for part in parts
        if part.tag == tag
    )
    return f"<h2>{_text(tag)}</h2><ul>{links}</ul>"


def _group(tag: str, parts: Sequence[_Part]) -> str:
    found = "".join(
        f'<section class="panel" id="{_text(part.id)}" aria-labelledby="{_text(part.id)}-title">'
        f'<h3 id="{_text(part.id)}-title">{_method(part)} <code>{_path(part.path)}</code>'
        f'<span class="summary">{_text(part.summary)}</span></h3>{part.content}</section>'
        for part in parts
        if part.tag == tag
    )
    return f"<h2>{_text(tag)}</h2>{found}"


def _method(part: _Part) -> str:
    return f'<span class="method {part.method.lower()}">{part.method}</span>'


def _path(path: str) -> str:
    """A path that may break at its slashes."""
    return _text(path).replace("/", "/<wbr>")


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{one}</td>" for one in rest)}</tr>'
        for first, *rest in rows
    )
    wide = ' class="wide"' if len(head) > 3 else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
        f"<table{wide}><caption>{caption}</caption><thead><tr>{names}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _parameters(parameters: Sequence[Mapping[str, object]]) -> str:
    rows = [
        (f"<code>{_text(one['name'])}</code>", _text(one["in"]), _prose(one["description"]))
        for one in parameters
    ]
    return _table("Parameters", ("name", "in", "meaning"), rows)


def _tries(part: _Part, url: str) -> str:
    """Forms that send each example of an operation."""
    sent = openapi.examples(dict(part.operation))
    if not sent:
        return _form(part, url, None, f"{part.id}-try")
    return "".join(
        f"<details{' open' if not number else ''}><summary>{_text(one.label)}</summary>"
        f"{_form(part, url, one, f'{part.id}-{number}')}</details>"
        for number, one in enumerate(sent)
    )


def _form(part: _Part, url: str, example: Example | None, name: str) -> str:
    body, kind = "", ""
    if example is None:
        samples = _maps(part.operation["x-codeSamples"])
        line = str(samples[0]["source"])
    else:
        line = openapi.curl_line(url, example)
        kind = f' data-type="{_text(example.kind)}"'
        size = min(example.text.count("\n") + len(example.text) // LINE + 1, MOST_LINES)
        body = (
            f'<label for="{name}">Body, {_text(example.kind)}</label>'
            f'<textarea id="{name}" rows="{size}" spellcheck="false">{_text(example.text)}'
            "</textarea>"
        )
    return (
        f'<form class="try" data-method="{part.method}" data-url="{_text(url)}"{kind}>{body}'
        f'<div class="line"><pre tabindex="0" aria-label="Command line">{_text(line)}</pre>'
        '<button type="button" class="copy">Copy</button></div>'
        f'<button class="send">Send</button>'
        '<output class="answer" hidden></output></form>'
    )


def _bodies(operation: Mapping[str, object]) -> str:
    content = _map(_map(operation.get("requestBody", {})).get("content", {}))
    rows = [(_text(kind), _type(_map(_map(one)["schema"]))) for kind, one in content.items()]
    return _table("Bodies", ("type", "content"), rows)


def _answers(responses: Mapping[str, object], shared: Mapping[str, object]) -> str:
    rows = []
    for status, one in responses.items():
        described = _map(shared[status] if "$ref" in _map(one) else one)
        content = _map(described.get("content", {}))
        types = [
            f"{_text(kind)}: {_type(_map(_map(schema)['schema']))}"
            for kind, schema in content.items()
        ]
        rows.append((_text(status), _prose(described["description"]), "<br>".join(types)))
    return _table("Answers", ("status", "meaning", "content"), rows)


def _schema(name: str, schema: Mapping[str, object]) -> str:
    required = _list(schema.get("required", []))
    rows = [
        (
            f"<code>{_text(key)}</code>" + (" *" if key in required else ""),
            _type(_map(one)),
            _prose(_map(one).get("description", "")),
            ", ".join(f"<code>{_text(value)}</code>" for value in _list(_map(one).get("examples"))),
        )
        for key, one in _map(schema["properties"]).items()
    ]
    has_examples = any(row[-1] for row in rows)
    head = ("name", "type", "meaning", "examples")[: 4 if has_examples else 3]
    text = f"<p>{_prose(schema['description'])}</p>" if "description" in schema else ""
    caption = "* always there" if required else "Fields"
    table = _table(caption, head, [row[: len(head)] for row in rows])
    return (
        f'<section class="panel" id="schema-{_text(name)}"><h3>{_text(name)}</h3>{text}{table}'
        "</section>"
    )


def _type(schema: Mapping[str, object]) -> str:
    """What a schema says of a value, in few words."""
    if "$ref" in schema:
        name = _text(str(schema["$ref"]).rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(map(_type, _maps(schema[key])))
    if "enum" in schema:
        return " or ".join(f"<code>{_text(one)}</code>" for one in _list(schema["enum"]))
    if "const" in schema:
        return f"<code>{_text(str(schema['const']).lower())}</code>"
    if "items" in schema:
        return f"list of {_type(_map(schema['items']))}" if schema["items"] else "list"
    kind = schema.get("type", "")
    if kind in ("", "string") and "description" in schema:
        return _prose(schema["description"]) if not kind else "text"
    names = {"string": "text", "boolean": "truth value"}
    kinds = [str(one) for one in (kind if isinstance(kind, list) else [kind])]
    *first, last = [names.get(one, one) for one in kinds]
    return f"{', '.join(first)} or {last}" if first else last


def _text(value: object) -> str:
    return html.escape(str(value))


def _prose(value: object) -> str:
    """Text whose `names` are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(value))


def _map(value: object) -> Mapping[str, object]:
    assert isinstance(value, Mapping)
    return value


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _maps(value: object) -> list[Mapping[str, object]]:
    return [_map(one) for one in _list(value)]
