"""The Open Inference Protocol with a client that others wrote, and the page that explains it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openapi_spec_validator import validate
from playwright.sync_api import Page, sync_playwright
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from tests.harness import Pipeline, Script
from utils.broker import free_port

MODEL = "model"
NUMBERS = ("age", "fnlwgt", "capital_gain", "capital_loss", "hours_per_week")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")


@pytest.fixture(scope="module")
def address(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server, host:port; it needs no broker."""
    pipeline = Pipeline(tmp_path_factory.mktemp("home"), "127.0.0.1:1")
    pipeline.copy_files(prepared_home)
    port = free_port()
    serving: Script = pipeline.start("-m", "serving", "--port", str(port))
    serving.says("model 1 serves at")
    yield f"127.0.0.1:{port}"
    assert serving.end() == 0
    assert "Traceback" not in serving.text() and "fault" not in serving.text()


def tensors(rows: list[dict[str, Any]], *, binary: bool) -> list[InferInput]:
    """Rows as tritonclient sends them: numbers in the datatypes of numpy, categories as BYTES."""
    made = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        array = np.array(values, np.float64 if name in NUMBERS else np.object_)
        datatype = "FP64" if name in NUMBERS else "BYTES"
        if name == "age":
            array, datatype = array.astype(np.int32), "INT32"
        one = InferInput(name, [len(rows), 1], datatype)
        made.append(one.set_data_from_numpy(array.reshape(-1, 1), binary_data=binary))
    return made


@pytest.mark.timeout(90)
def test_another_client_gets_the_same_answers(address: str, adult: list[dict[str, Any]]) -> None:
    # "?" is missing: as text here, which means the same.
    rows = [
        {name: "?" if value is None else value for name, value in row.items() if name != target}
        for row in adult[:50]
        for target in ["income_bracket"]
    ]
    url = f"http://{address}/invocations"
    expected = httpx.post(url, json={"instances": rows}).json()["predictions"]
    with InferenceServerClient(address) as client:
        check_what_the_server_says(client, rows[0])
        for binary in (True, False):
            outputs = [
                InferRequestedOutput(name, binary_data=binary)
                for name in ("label", "probability", "request_id")
            ]
            sent = tensors(rows, binary=binary)
            for found in (
                client.infer(MODEL, sent, outputs=outputs, request_id="r"),
                client.infer(MODEL, sent, model_version="1", request_id="r"),
            ):
                check_answers(found, expected)
        check_faults(client, rows)


def check_what_the_server_says(client: InferenceServerClient, row: dict[str, Any]) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2") and not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    described = client.get_model_metadata(MODEL)
    inputs = {one["name"]: one["datatype"] for one in described["inputs"]}
    assert inputs == {name: "FP64" if name in NUMBERS else "BYTES" for name in row}


def check_answers(found: InferResult, expected: list[Any]) -> None:
    """Check that answers are those of `/invocations`, bit for bit."""
    assert found.get_response()["model_version"] == "1"
    probabilities = found.as_numpy("probability")
    assert probabilities.dtype == np.float64
    assert probabilities.tolist() == [one["probability"] for one in expected]
    labels = [one.decode() if isinstance(one, bytes) else one for one in found.as_numpy("label")]
    assert labels == [one["label"] for one in expected]
    first = found.as_numpy("request_id")[0]
    assert (first.decode() if isinstance(first, bytes) else first) == "r-0"


def check_faults(client: InferenceServerClient, rows: list[dict[str, Any]]) -> None:
    """Check that a row at fault spoils no other, and that errors say why."""
    ages = InferInput("age", [3], "BYTES").set_data_from_numpy(
        np.array(["39", "old", ""], np.object_)
    )
    found = client.infer(MODEL, [ages])
    assert found.as_numpy("error").tolist() == [b"", b"age: 'old' is no number", b""]
    assert np.isnan(found.as_numpy("probability")).tolist() == [False, True, False]
    assert found.as_numpy("prediction")[1] == -1
    alone = InferInput("age", [1], "BYTES").set_data_from_numpy(np.array(["old"], np.object_))
    for inputs, model, version, reason in (
        ([alone], MODEL, "", "age: 'old' is no number"),
        (tensors(rows, binary=True), "other", "", "there is no model 'other'"),
        (tensors(rows, binary=True), MODEL, "7", "has version 1 now, not 7"),
    ):
        with pytest.raises(InferenceServerException, match=reason):
            client.infer(model, inputs, model_version=version)
    with pytest.raises(InferenceServerException, match="must not be compressed"):
        client.infer(MODEL, [ages], request_compression_algorithm="gzip")
    assert client.infer(MODEL, [ages]).as_numpy("model_id").tolist() == [1, 1, 1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_every_command_of_the_document_works_when_pasted(address: str) -> None:
    document = httpx.get(f"http://{address}/openapi.json").json()
    validate(document)
    samples = [
        (path, sample["source"])
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
        for sample in operation["x-codeSamples"]
    ]
    assert {path for path, _ in samples} == set(document["paths"])
    script = "\n".join(f"{line} -w '\\n%{{http_code}}\\n'" for _, line in samples)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    statuses = [line for line in done.stdout.splitlines() if len(line) == 3 and line.isdigit()]
    assert statuses == ["200"] * len(samples), done.stdout + done.stderr
    assert done.stdout.count("income") and done.stdout.count('"probability"') >= 4


@pytest.mark.optional
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_page_sends_its_examples(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (400, "dark")):
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,  # type: ignore[arg-type]
            )
            faults = watch(page)
            page.goto(f"http://{address}/docs")
            check_page(page)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert [text for text in faults if "status of 400" not in text] == []
        browser.close()


def watch(page: Page) -> list[str]:
    """What the browser has to say of a page."""
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    return faults


def check_page(page: Page) -> None:
    """Check that the page sends what stands in its text fields, and shows the answers."""
    page.evaluate("document.querySelectorAll('button.send').forEach(one => one.click())")
    answers = page.locator(".answer .status")
    count = page.locator("form.try").count()
    assert count > 10
    page.wait_for_function(
        f"document.querySelectorAll('.answer .status').length === {count}", timeout=15_000
    )
    statuses = [text.partition(",")[0] for text in answers.all_text_contents()]
    assert statuses == ["200 OK"] * count
    form = page.locator("#invoke form").first
    form.locator("textarea").fill('{"age": "it\'s old"}')
    assert """--data-binary '{"age": "it'"'"'s old"}'""" in form.locator("pre").first.inner_text()
    form.locator("button.send").click()
    form.get_by_text("400 Bad Request").wait_for()
    assert "is no number" in form.locator(".answer pre").inner_text()
