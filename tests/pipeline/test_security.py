"""A real cluster with TLS and a login: refused connections, and secrets that no output shows."""

import ast
import datetime
import ipaddress
import re
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.harness import Pipeline, listening_addresses
from tests.unit.utils.message_store.samples import FEATURES
from utils import kafka_io, process, settings
from utils.broker import Broker, free_port
from utils.kafka_io import (
    ExactlyOnce,
    KafkaUnavailable,
    LogReader,
    Refused,
    Sender,
    clients,
    connection,
)
from utils.message_store import MessageStore, StoreError
from utils.messages import PREDICTIONS
from utils.settings import ROOT

SCRIPTS = ("initialize.py", "predictor.py", "trainer.py", "sample_app.py")
USER, PASSWORD = "ann", "p\xe4ssword of 'ann'"
REFUSED = "refused user 'ann': Authentication failed"
UNKNOWN = "is not trusted: unable to get local issuer certificate"
EXPIRED = "is not trusted: certificate has expired"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


class Authority:
    """A certificate authority for the tests; its certificate is `<name>.crt`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = _x509_name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(self._name, self._key.public_key(), days=30, authority=True)
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(certificate)

    def server(self, name: str, *, days: int) -> Path:
        """Write a key and a certificate for this machine, valid for `days`, to one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self._folder / f"{name}.pem"
        path.write_bytes(secret + self._signed(_x509_name(name), key.public_key(), days=days))
        return path

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        days: int,
        authority: bool = False,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        here = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=40))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(here), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _x509_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


class Cluster:
    """A broker whose listeners require TLS and a login; one has an expired certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        authority = Authority(folder, "authority")
        ports = free_port(), free_port()
        good, expired = (f"127.0.0.1:{port}" for port in ports)
        overrides = {
            "listeners": f"SASL_SSL://{good},EXPIRED://{expired}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
            "SASL_SSL:SASL_SSL,EXPIRED:SASL_SSL",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(authority.server("good", days=30)),
            "listener.name.expired.ssl.keystore.type": "PEM",
            "listener.name.expired.ssl.keystore.location": str(
                authority.server("expired", days=-1)
            ),
        }
        security = "org.apache.kafka.common.security"
        for listener in ("sasl_ssl", "expired"):
            overrides |= {
                f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": (
                    f"{security}.scram.ScramLoginModule required;"
                ),
                f"listener.name.{listener}.plain.sasl.jaas.config": (
                    f'{security}.plain.PlainLoginModule required user_bob="{PLAIN_PASSWORD}";'
                ),
            }
        self.broker = Broker(folder / "broker", overrides=overrides, scram={USER: PASSWORD})
        self.login = {
            "KAFKA_BOOTSTRAP_SERVERS": good,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": PASSWORD,
            "KAFKA_SSL_CAFILE": str(authority.file),
        }
        self.wrong = {
            REFUSED: {"KAFKA_SASL_PASSWORD": "wrong-Word"},
            UNKNOWN: {"KAFKA_SSL_CAFILE": str(Authority(folder, "stranger").file)},
            EXPIRED: {"KAFKA_BOOTSTRAP_SERVERS": expired},
        }


PLAIN_PASSWORD = "PlainWord-4711"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("secured") / "cluster")
    with cluster.broker:
        yield cluster


@pytest.fixture
def secured_pipeline(cluster: Cluster, prepared_home: Path, tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline with data, a model, and the login in its environment."""
    pipeline = Pipeline(tmp_path, **cluster.login)
    pipeline.copy_files(prepared_home)
    yield pipeline
    pipeline.close()


def test_pipeline_runs_on_cluster_with_tls_and_login(
    cluster: Cluster, secured_pipeline: Pipeline
) -> None:
    """Everything runs over SASL_SSL with the documented variables; one script logs all it can."""
    done = secured_pipeline.run("initialize.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "topics created" in done.stdout
    predictor = secured_pipeline.start("predictor.py", PIPELINE_LOG="debug")
    trainer = secured_pipeline.start("trainer.py", "--evals", "1")
    trainer.says("ready")
    app = secured_pipeline.run("sample_app.py", "--messages", "30", "--interval", "0")
    assert app.returncode == 0, app.stdout[-2000:]
    assert "sent 30, answered 30" in app.stdout
    assert len(secured_pipeline.values(PREDICTIONS)) == 30
    secured_pipeline.wait_for_events("training_completed", 1)
    for script in (predictor, trainer):
        assert listening_addresses(script.process.pid) == []
    assert set(listening_addresses(cluster.broker.pid)) <= LOOPBACK
    assert predictor.end() == 0 and trainer.end() == 0
    assert "SaslAuthenticate" in predictor.text()  # the log has the requests of the login
    check_password_is_hidden(predictor.text(), PASSWORD)


def test_plain_password_is_masked_in_the_debug_log(
    cluster: Cluster, secured_pipeline: Pipeline
) -> None:
    """PLAIN sends the password in plain text, and the client logs its requests."""
    secured_pipeline.env |= {
        "PIPELINE_LOG": "DEBUG",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "bob",
        "KAFKA_SASL_PASSWORD": PLAIN_PASSWORD,
    }
    done = secured_pipeline.run("initialize.py")
    assert done.returncode == 0
    assert r"\x00bob\x00***" in done.stderr
    check_password_is_hidden(done.stdout + done.stderr, PLAIN_PASSWORD)


def check_password_is_hidden(text: str, password: str) -> None:
    for shape in (password, repr(password)[1:-1], repr(password.encode())[2:-1]):
        assert shape not in text


def test_scripts_end_with_one_line_when_connection_is_refused(
    cluster: Cluster, secured_pipeline: Pipeline
) -> None:
    rounds = [[(script, REFUSED) for script in SCRIPTS]]
    rounds += [[("predictor.py", UNKNOWN), ("trainer.py", EXPIRED)]]
    for each in rounds:
        scripts = [
            secured_pipeline.start(script, **cluster.wrong[reason]) for script, reason in each
        ]
        for (name, reason), script in zip(each, scripts, strict=True):
            assert script.process.wait(60) == 1
            (line,) = script.text().splitlines()
            assert line.startswith(f"{name}: the broker at 127.0.0.1:"), line
            assert reason in line
            assert "wrong-Word" not in line


@pytest.mark.parametrize("reason", [REFUSED, UNKNOWN, EXPIRED])
def test_every_client_gives_the_same_reason_for_a_refusal(cluster: Cluster, reason: str) -> None:
    """Every client that the scripts open raises Refused with this reason."""
    kafka = settings.load({**cluster.login, **cluster.wrong[reason]}).kafka
    member: dict[str, Any] = {"group": "g", "topics": ["t"], "instance_id": "s", "max_records": 1}
    started = time.monotonic()
    for opened in (
        partial(kafka_io.check_broker, kafka),
        partial(kafka_io.wait_for_broker, kafka, 60),  # does not wait: a refusal is final
        partial(kafka_io.ensure_topics, kafka, {}),
        partial(LogReader, kafka, ["t"]),
        partial(Sender, kafka),
        partial(ExactlyOnce, kafka, report=print, **member),
    ):
        with pytest.raises(Refused, match=re.escape(reason)) as failure:
            opened()
        assert "\n" not in str(failure.value)
    assert time.monotonic() - started < 25  # retries of 5 s each would take longer


def test_unsupported_sasl_mechanism_is_one_line(cluster: Cluster) -> None:
    kafka = settings.load({**cluster.login, "KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"}).kafka
    with pytest.raises(Refused, match=r"does not support SCRAM-SHA-256 \(KAFKA_SASL_MECHANISM\)$"):
        kafka_io.check_broker(kafka)


def test_server_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client alone would wait forever for the end of the handshake."""
    monkeypatch.setattr(clients, "BOOTSTRAP_TIMEOUT_MS", 600)
    monkeypatch.setattr(connection, "HANDSHAKE_TIMEOUT_MS", 200)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        kafka = settings.Kafka(bootstrap_servers=where, security_protocol="SSL")
        with pytest.raises(KafkaUnavailable, match=f"no Kafka broker answers at {where} with SSL"):
            kafka_io.check_broker(kafka)


# The code

#: Modules and calls that run code from their input.
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pd.read_pickle"}


def test_no_module_runs_code_from_data() -> None:
    """Nor does one use a shell. `make check` runs bandit, which checks more."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py"), *ROOT.glob("train/**/*.py")]
    assert len(files) > 20
    found = [
        f"{file.name}: {ast.unparse(node)[:60]}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if _runs_data(node)
    ]
    # The shim puts joblib where an optional optimiser expects it in scikit-learn.
    assert found == ["hunter_shims.py: import joblib"]


def _runs_data(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names]
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        return any(name.split(".")[0] in MODULES for name in names)
    if not isinstance(node, ast.Call):
        return False
    flags = {k.arg: ast.unparse(k.value) for k in node.keywords}
    flagged = flags.keys() & {"shell", "allow_pickle"}
    return ast.unparse(node.func) in CALLS or any(flags[name] != "False" for name in flagged)


def test_help_and_store_errors_do_not_contain_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    database = "postgresql://me:DatabaseWord@127.0.0.1:1/x?password=ParameterWord"
    secrets = {"KAFKA_SASL_PASSWORD": "BrokerWord", "MESSAGES_URL": database}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    texts = [process.parser("").format_help(), repr(settings.load().kafka)]
    for changes in (
        {"MESSAGES_URL": "mysql://me:DatabaseWord@h/d?password=ParameterWord"},
        {},
    ):
        loaded = settings.load({**secrets, **changes})
        with pytest.raises(StoreError) as failure:
            MessageStore(loaded.messages_url, FEATURES)
        texts.append(str(failure.value))
    assert "me:***@127.0.0.1:1/x: " in texts[-1]
    words = ("BrokerWord", "DatabaseWord", "ParameterWord")
    assert not [word for word in words for text in texts if word in text]
