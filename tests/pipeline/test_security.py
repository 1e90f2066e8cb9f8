"""A real cluster with TLS and a login: refused connections, and secrets that no output shows."""

import ast
import re
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Pipeline, listening_addresses
from tests.pipeline.security import (
    CLIENT_SECRET,
    EXPIRED,
    NO_CERTIFICATE,
    NO_TOKEN,
    OTHER_CERTIFICATE,
    OTHER_TOKEN,
    PASSWORD,
    PLAIN_PASSWORD,
    REFUSED,
    UNKNOWN,
    Cluster,
    has_ipv6,
)
from tests.unit.utils.message_store.samples import FEATURES
from utils import kafka_io, process, settings
from utils.broker import free_port
from utils.kafka_io import (
    ExactlyOnce,
    KafkaUnavailable,
    LogReader,
    Refused,
    Sender,
    clients,
    connection,
    oauth,
)
from utils.message_store import MessageStore, StoreError
from utils.messages import GROUPS, PREDICTIONS
from utils.settings import ROOT

SCRIPTS = ("initialize.py", "predictor.py", "trainer.py", "sample_app.py")
#: IPv4's, also as IPv6 has it, and that of IPv6 itself.
LOOPBACK = {
    "0100007F",
    "0000000000000000FFFF00000100007F",
    "00000000000000000000000001000000",
}
MSK = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
    "KAFKA_SASL_OAUTH_AWS_REGION": "eu-central-1",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("secured") / "cluster").running() as cluster:
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
    rounds += [[("predictor.py", NO_CERTIFICATE), ("trainer.py", NO_TOKEN)]]
    for each in rounds:
        scripts = [
            secured_pipeline.start(script, **cluster.wrong[reason]) for script, reason in each
        ]
        for (name, reason), script in zip(each, scripts, strict=True):
            assert script.process.wait(60) == 1
            (line,) = script.text().splitlines()
            assert line.startswith(f"{name}: ") and "127.0.0.1:" in line, line
            assert reason in line
            assert "wrong-Word" not in line


@pytest.mark.parametrize(
    "reason",
    [REFUSED, UNKNOWN, EXPIRED, NO_CERTIFICATE, OTHER_CERTIFICATE, NO_TOKEN, OTHER_TOKEN],
)
def test_every_client_gives_the_same_reason_for_a_refusal(cluster: Cluster, reason: str) -> None:
    """Every client that the scripts open raises Refused with this reason."""
    kafka = settings.load(cluster.wrong[reason]).kafka
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


def test_certificate_and_key_with_a_password_admit_a_client(cluster: Cluster) -> None:
    kafka_io.check_broker(settings.load(cluster.mutual_tls).kafka)


def test_renewed_certificate_is_used_by_the_next_connection(cluster: Cluster) -> None:
    """The expired one is named: the broker says no more than that it does not know it."""
    certificate = cluster.authority.issue("renewed")
    environment = {**cluster.no_certificate, "KAFKA_SSL_CERTFILE": str(certificate)}
    kafka = settings.load(environment).kafka
    cluster.authority.issue("renewed", days=-1)
    with pytest.raises(Refused, match=f"KAFKA_SSL_CERTFILE: {certificate} has expired on "):
        kafka_io.check_broker(kafka)
    cluster.authority.issue("renewed")
    kafka_io.check_broker(kafka)


# Tokens


def test_all_clients_share_one_token(cluster: Cluster) -> None:
    extensions = "logicalCluster=lkc-1,identityPoolId=pool-2"
    kafka = settings.load({**cluster.token_login, "KAFKA_SASL_OAUTH_EXTENSIONS": extensions}).kafka
    cluster.provider.scopes.clear()
    for _ in range(3):
        kafka_io.check_broker(kafka)
    assert cluster.provider.scopes == ["kafka"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, b"<html>"), "its answer is not that of a token URL"),
        ((200, b"{}"), "its answer is not that of a token URL"),
        ((200, b'{"access_token": "a\\u0001b"}'), "its answer is not that of a token URL"),
        ((302, b""), "HTTP status 302"),
        ((400, b'{"error": "invalid_scope"}'), "HTTP status 400, invalid_scope"),
        ((503, b"down"), "HTTP status 503"),
    ],
)
def test_provider_without_a_token_is_one_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes], reason: str
) -> None:
    monkeypatch.setattr(cluster.provider, "answer", answer)
    # The kinds of answer share no token, so neither do their settings.
    environment = {**cluster.token_login, "KAFKA_SASL_OAUTH_SCOPE": repr(answer)}
    with pytest.raises(Refused) as failure:
        kafka_io.check_broker(settings.load(environment).kafka)
    text = str(failure.value)
    assert text.startswith(f"no token from {cluster.provider.url}") and text.endswith(reason)
    assert CLIENT_SECRET not in text and "\n" not in text


def test_provider_that_is_not_trusted_is_one_line(cluster: Cluster) -> None:
    environment = {**cluster.token_login, "KAFKA_SASL_OAUTH_CAFILE": ""}
    with pytest.raises(Refused, match=f"^no token from {cluster.provider.url}: .*verify failed"):
        kafka_io.check_broker(settings.load(environment).kafka)


def test_provider_that_does_not_answer_is_one_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oauth, "TIMEOUT_S", 0.2)
    with no_answer() as silent, no_connection() as nowhere:
        for where, reason in ((silent, "timed out"), (nowhere, "Connection refused")):
            url = f"http://{where}/token"
            environment = {**cluster.token_login, "KAFKA_SASL_OAUTH_TOKEN_URL": url}
            with pytest.raises(Refused, match=f"^no token from {url}: .*{reason}$"):
                kafka_io.check_broker(settings.load(environment).kafka)


def test_predictor_goes_on_while_its_tokens_expire(
    cluster: Cluster, secured_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is lost, and the log, which has every request, shows no token."""
    # Longer than a busy machine may delay the poll that renews a session.
    monkeypatch.setattr(cluster.provider, "lifetime", 6)
    cluster.provider.scopes.clear()
    secured_pipeline.env |= cluster.token_login
    kafka_io.ensure_topics(settings.load(cluster.login).kafka, GROUPS)
    predictor = secured_pipeline.start("predictor.py", PIPELINE_LOG="debug")
    predictor.says("serves partitions")
    app = secured_pipeline.run("sample_app.py", "--messages", "40", "--interval", "0.4")
    assert app.returncode == 0, app.stdout[-2000:]
    assert "sent 40, answered 40" in app.stdout
    assert predictor.end() == 0
    text = predictor.text()
    assert text.count("Beginning SASL re-authentication") >= 6  # of two connections or more
    assert len(cluster.provider.scopes) >= 6
    assert "Connection lost" not in text and "waiting for the broker" not in text
    assert "auth=Bearer ***" in text and "eyJ" not in text
    check_password_is_hidden(text, CLIENT_SECRET)


def test_msk_signer_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    kafka = settings.load({**MSK, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}).kafka
    with pytest.raises(Refused, match=r"^KAFKA_SASL_OAUTH_AWS_REGION needs .*requirements-msk.txt"):
        kafka_io.check_broker(kafka)


@pytest.mark.optional
def test_token_signed_for_msk_reaches_the_broker(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a broker of AWS, which would accept it: this one refuses it."""
    pytest.importorskip("aws_msk_iam_sasl_signer", reason="needs requirements-msk.txt")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SignerWord")
    where = cluster.token_login["KAFKA_BOOTSTRAP_SERVERS"]
    kafka = settings.load({**MSK, "KAFKA_BOOTSTRAP_SERVERS": where}).kafka
    with pytest.raises(Refused, match="refused the token from AWS: "):
        kafka_io.check_broker(kafka)
    token = oauth.token_provider(kafka).token()
    url = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
    assert url.startswith("https://kafka.eu-central-1.amazonaws.com/?Action=kafka-cluster")
    assert "AKIAEXAMPLE" in url and "SignerWord" not in url


# Servers and addresses that do not answer


@contextmanager
def no_answer() -> Iterator[str]:
    """An address that accepts connections, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def no_handshake() -> Iterator[str]:
    """An address that drops packets, as a firewall does: its queue is full."""
    with socket.socket() as listener, socket.socket() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def no_connection() -> Iterator[str]:
    """An address that refuses connections."""
    yield f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize(
    ("dead", "limit"), [(no_answer, 9.5), (no_handshake, 4), (no_connection, 4)]
)
def test_dead_bootstrap_servers_do_not_hide_the_answer_of_another(
    cluster: Cluster, dead: Callable[[], AbstractContextManager[str]], limit: float
) -> None:
    """Not even that it refuses the client."""
    alive = cluster.login["KAFKA_BOOTSTRAP_SERVERS"]
    with dead() as first, dead() as second:
        servers = {"KAFKA_BOOTSTRAP_SERVERS": f"{first},{second},{alive}"}
        kafka = settings.load({**cluster.wrong[REFUSED], **servers}).kafka
        started = time.monotonic()
        with pytest.raises(Refused, match=REFUSED):
            kafka_io.check_broker(kafka)
        assert time.monotonic() - started < limit


RESOLVER = """
import socket, sys, time
from utils import kafka_io, settings
resolve = socket.getaddrinfo
def addresses(host, port, *more):
    at = [port, *sys.argv[1:]] if host == "kafka.test" else None
    return resolve(host, port, *more) if at is None else [
        entry for each in at[1:] for entry in resolve("127.0.0.1", int(each), *more)]
socket.getaddrinfo = addresses
started = time.monotonic()
kafka_io.check_broker(settings.Kafka(bootstrap_servers="kafka.test:9092"))
print(time.monotonic() - started)
"""


@pytest.mark.parametrize("dead", [no_handshake, no_connection])
def test_dead_first_address_of_a_name_does_not_delay_the_start(
    cluster: Cluster, dead: Callable[[], AbstractContextManager[str]]
) -> None:
    with dead() as first:
        ports = [where.rpartition(":")[2] for where in (first, cluster.broker.bootstrap)]
        done = subprocess.run(
            [sys.executable, "-c", RESOLVER, *ports], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 2


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 on this machine")
def test_ipv6_address_is_reached(cluster: Cluster) -> None:
    kafka_io.check_broker(settings.load({"KAFKA_BOOTSTRAP_SERVERS": cluster.ipv6}).kafka)


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
    secrets = {
        "KAFKA_SASL_PASSWORD": "BrokerWord",
        "KAFKA_SASL_OAUTH_CLIENT_SECRET": "ClientWord",
        "KAFKA_SSL_KEY_PASSWORD": "KeyWord",
        "MESSAGES_URL": database,
    }
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
    words = ("BrokerWord", "ClientWord", "KeyWord", "DatabaseWord", "ParameterWord")
    assert not [word for word in words for text in texts if word in text]
