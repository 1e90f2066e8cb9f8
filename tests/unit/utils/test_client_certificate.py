"""A client's certificate and key: what is wrong with them is named before any broker sees them."""

from pathlib import Path

import pytest

from tests.pipeline.security import Authority
from tests.terminal import Terminal
from utils import settings
from utils.client_certificate import check_certificate
from utils.settings import SettingsError


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.mark.parametrize("password", ["", "KeyWord"])
def test_certificate_and_key_are_accepted(authority: Authority, password: str) -> None:
    """Also with a password that the key does not need."""
    together = authority.issue("client", password=password)
    check_certificate(together, None, "KeyWord")
    check_certificate(together, together, "KeyWord")


@pytest.mark.parametrize(
    ("certificate", "key", "password", "at_fault", "reason"),
    [
        ("expired", "", "", "certfile", "/expired.pem has expired on "),
        ("early", "", "", "certfile", "/early.pem is not valid before "),
        ("nowhere", "", "", "certfile", "/nowhere.pem (No such file or directory)"),
        ("text", "", "", "certfile", "there is no certificate in "),
        ("good", "nowhere", "", "keyfile", "/nowhere.pem (No such file or directory)"),
        ("good", "text", "", "keyfile", "there is no key in "),
        ("good", "other", "", "keyfile", "/other.pem is not the certificate's key"),
        ("locked", "", "", "key_password", "/locked.pem is missing"),
        ("locked", "", "wrong-Word", "key_password", "/locked.pem is wrong"),
        ("locked", "", "long" * 300, "key_password", "longer than 1024 bytes"),
    ],
)
def test_mistake_names_its_variable(
    authority: Authority,
    tmp_path: Path,
    certificate: str,
    key: str,
    password: str,
    at_fault: str,
    reason: str,
) -> None:
    for name in ("good", "other"):
        authority.issue(name)
    authority.issue("expired", days=-1)
    authority.issue("early", age=-1)
    authority.issue("locked", password="KeyWord")
    (tmp_path / "text.pem").write_text("nothing")
    files = {"KAFKA_SSL_CERTFILE": certificate, "KAFKA_SSL_KEYFILE": key}
    environment = {name: str(tmp_path / f"{file}.pem") for name, file in files.items() if file}
    with pytest.raises(SettingsError) as failure:
        settings.load({**environment, "KAFKA_SSL_KEY_PASSWORD": password})
    text = str(failure.value)
    assert text.startswith(f"KAFKA_SSL_{at_fault.upper()}: ") and reason in text
    assert "\n" not in text and "Word" not in text


def test_key_without_a_certificate_is_refused(authority: Authority) -> None:
    with pytest.raises(SettingsError, match="KAFKA_SSL_KEYFILE needs KAFKA_SSL_CERTFILE as well"):
        settings.load({"KAFKA_SSL_KEYFILE": str(authority.issue("client"))})


#: Reads the settings, then copies a file to another, then does what a connection does at its start.
CONNECT = """
import shutil, sys
from kafka.net.transport import KafkaSSLTransport
from utils import settings
from utils.kafka_io import client_settings
kafka = settings.load().kafka
shutil.copy(*sys.argv[1:])
given = {**KafkaSSLTransport.DEFAULT_CONFIG, **client_settings(kafka)}
for attempt in (lambda: KafkaSSLTransport._build_ssl_context(given), settings.load):
    try:
        attempt()
    except Exception as error:
        print(type(error).__name__)
"""


def test_missing_password_is_not_asked_for_on_the_terminal(authority: Authority) -> None:
    """Neither at the start nor by a connection, if the key has got a password meanwhile."""
    certificate = authority.issue("client")
    locked = authority.issue("locked", password="KeyWord")
    terminal = Terminal(
        {"KAFKA_SSL_CERTFILE": str(certificate)}, "-c", CONNECT, str(locked), str(certificate)
    )
    assert terminal.process.wait(30) == 0
    assert terminal.text().split() == ["SSLError", "SettingsError"]
