"""The page that shows the OpenAPI document."""

import re
from html.parser import HTMLParser
from string import Template
from typing import Any

from serving.docs import FOLDER, render
from serving.openapi import Place, document
from tests.unit.serving.conftest import ClientOf
from utils.model_store import Bundle
from utils.settings import Serving

VOID = {"meta", "link", "wbr", "br"}


class _Page(HTMLParser):
    """Checks that tags match, and collects ids, links and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if tag == "a" else []
        self.loads += [one or "" for name, one in attrs if name == "src"]
        self.loads += [found["href"] or ""] if tag == "link" else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(bundle: Bundle, name: str = "kinds", log: bool = False) -> str:
    found = document(bundle, Place("http://127.0.0.1:8080", name), Serving(log=log))
    return render(found, Template((FOLDER / "docs.html").read_text("utf-8")), "n0nce")


def test_the_page_is_well_formed_and_loads_nothing(bundle: Bundle, three_classes: Bundle) -> None:
    for text in (page_of(bundle), page_of(three_classes), page_of(bundle, log=True)):
        page = _Page(text)
        assert page.loads == ["data:,"]
        assert len(page.ids) == len(set(page.ids))
        targets = {link.removeprefix("#") for link in page.links if link.startswith("#")}
        assert targets <= set(page.ids)
        assert [link for link in page.links if not link.startswith("#")] == ["openapi.json"]


def test_what_comes_from_outside_is_text(bundle: Bundle) -> None:
    found: Any = document(bundle, Place('http://"><script>', "<b>"), Serving())
    text = render(found, Template((FOLDER / "docs.html").read_text("utf-8")), "n0nce")
    assert "<b>" not in text and len(re.findall("<script", text)) == 1
    _Page(text)


def test_the_browser_is_forbidden_to_load_anything(client_of: ClientOf, bundle: Bundle) -> None:
    found = client_of(bundle).get("/docs")
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
    policy = found.headers["content-security-policy"]
    (nonce,) = re.findall(r"script-src 'nonce-(.+?)'", policy)
    assert "default-src 'none'" in policy and found.text.count(f'nonce="{nonce}"') == 2
    assert nonce not in client_of(bundle).get("/docs").text


def test_each_example_has_its_command_line(bundle: Bundle) -> None:
    text = page_of(bundle)
    assert text.count(" --data-binary &#x27;") == text.count("<textarea") == 7
    assert "curl -sS http://127.0.0.1:8080/v2/models/kinds/versions/1/ready" in text
