"""pipeline.toml and the environment: which of them wins, and one line for each mistake."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from utils import settings
from utils.settings import ROOT, VARIABLES, DataFile, Kafka, Settings, SettingsError

SHA256 = "0" * 64
MINIMAL = '[data]\ntrain = "t.csv"\ntarget = "y"\n'
DATABASE_URL = "postgresql://me:DatabaseWord@127.0.0.1:1/x?password=ParameterWord"
SASL = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
    "KAFKA_SASL_USERNAME": "ann",
    "KAFKA_SASL_PASSWORD": "BrokerWord",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A pipeline.toml with nothing but what has no default."""
    path = tmp_path / "pipeline.toml"
    path.write_text(MINIMAL)
    return path


def load(config: Path, **environment: str) -> Settings:
    return settings.load({"PIPELINE_CONFIG": str(config), **environment})


def refusal(environment: dict[str, str]) -> str:
    """The error that this environment gives: one line."""
    with pytest.raises(SettingsError) as error:
        settings.load(environment)
    text = str(error.value)
    assert text and "\n" not in text
    return text


def value_of(loaded: Settings, path: tuple[str, ...]) -> Any:
    found: Any = loaded
    for name in path:
        found = getattr(found, name)
    return found


# The committed file and the defaults


def test_committed_file_has_the_documented_defaults() -> None:
    loaded = settings.load({})
    assert loaded.training.retrain_every == 25
    assert loaded.training.extra_models_to_keep == 1
    assert loaded.kafka.partitions == 1
    assert loaded.kafka.name == ""
    assert loaded.kafka.bootstrap_servers == "localhost:9092"
    assert loaded.kafka.security_protocol == "PLAINTEXT"
    assert loaded.messages.url == ""
    assert loaded.mlflow.tracking_uri == ""
    assert loaded.mlflow.experiment_name == ""
    assert loaded.log == "critical"
    assert loaded.home == ROOT
    assert loaded.data.target == "income_bracket"
    assert [file.name for file in loaded.data.files] == ["adult.data", "adult.test"]


def test_committed_file_repeats_the_defaults_of_the_code(config: Path) -> None:
    committed, defaults = settings.load({}), load(config)
    for section in ("training", "kafka", "messages", "sagemaker", "mlflow", "log"):
        assert getattr(committed, section) == getattr(defaults, section)


def test_folders_are_inside_the_home(config: Path, tmp_path: Path) -> None:
    loaded = load(config, PIPELINE_HOME=str(tmp_path))
    assert loaded.data_dir == tmp_path / "data"
    assert loaded.models_dir == tmp_path / "models"
    assert loaded.messages_dir == tmp_path / "messages"
    assert loaded.searches_dir == tmp_path / "searches"
    assert loaded.mlflow_dir == tmp_path / "mlruns"
    assert loaded.messages_url == f"sqlite:///{tmp_path}/messages/messages.db"
    assert load(config, MESSAGES_URL="sqlite:///x.db").messages_url == "sqlite:///x.db"


# The environment


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("KAFKA_BOOTSTRAP_SERVERS", "a:1,b:2", "a:1,b:2"),
        ("KAFKA_SECURITY_PROTOCOL", "SSL", "SSL"),
        ("KAFKA_SASL_MECHANISM", "PLAIN", "PLAIN"),
        ("KAFKA_SASL_USERNAME", "ann", "ann"),
        ("KAFKA_SASL_OAUTH_SCOPE", "kafka", "kafka"),
        ("RETRAIN_EVERY", "7", 7),
        ("MAX_AGE", "6h", 21_600),
        ("MAX_AGE", "90", 90),
        ("ON_DRIFT", "false", False),
        ("ON_INPUT_DRIFT", "true", True),
        ("DRIFT_INTERVAL", "1000", 1000),
        ("EXTRA_MODELS_TO_KEEP", "0", 0),
        ("PARTITIONS", "4", 4),
        ("PIPELINE_NAME", "eu.fraud-2", "eu.fraud-2"),
        ("MESSAGES_URL", "sqlite:///x.db", "sqlite:///x.db"),
        ("PIPELINE_LOG", "DEBUG", "debug"),
        ("PIPELINE_LOG_FORMAT", "JSON", "json"),
        ("MLFLOW_TRACKING_URI", "http://host:5000", "http://host:5000"),
        ("MLFLOW_EXPERIMENT_NAME", "mine", "mine"),
        ("SAGEMAKER_BASE_DIR", "/srv/ml", Path("/srv/ml")),
        ("SAGEMAKER_BIND_TO_PORT", "8081", 8081),
    ],
)
def test_environment_overrides_the_file(
    config: Path, name: str, text: str, expected: object
) -> None:
    config.write_text(
        MINIMAL
        + "[training]\nretrain_every = 3\nextra_models_to_keep = 3\n"
        + '[kafka]\npartitions = 3\nname = "file"\n'
        + '[messages]\nurl = "sqlite:///file.db"\n'
        + '[mlflow]\ntracking_uri = "http://file"\nexperiment_name = "file"\n'
    )
    (path,) = (variable.path for variable in VARIABLES if variable.name == name)
    assert value_of(load(config), path) != expected
    assert value_of(load(config, **{name: text}), path) == expected


def test_file_overrides_the_defaults(config: Path) -> None:
    config.write_text(MINIMAL + "[training]\nretrain_every = 3\n[kafka]\npartitions = 5\n")
    loaded = load(config)
    assert (loaded.training.retrain_every, loaded.kafka.partitions) == (3, 5)
    assert loaded.training.extra_models_to_keep == 1


def test_empty_variables_count_as_unset(config: Path) -> None:
    unset = load(config)
    for variable in VARIABLES:
        if variable.name != "PIPELINE_CONFIG":
            assert load(config, **{variable.name: ""}) == unset
    assert settings.load({"PIPELINE_CONFIG": ""}) == settings.load({})


def test_home_is_expanded_and_resolved(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert load(config, PIPELINE_HOME="~/mine").home == tmp_path / "mine"
    assert load(config, PIPELINE_HOME="mine/../other").home == tmp_path / "other"
    assert load(config, PIPELINE_HOME=str(tmp_path / "link")).home == tmp_path / "real"


def test_settings_cannot_be_changed(config: Path) -> None:
    loaded = load(config)
    with pytest.raises(ValidationError, match="frozen"):
        loaded.training.seed = 2  # type: ignore[misc]


# Mistakes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MINIMAL + "[training]\nretrain_evry = 3\n", "training.retrain_evry: Extra inputs"),
        (MINIMAL + "colour = 1\n", "data.colour: Extra inputs"),
        (MINIMAL + "[nonsense]\n", "nonsense: Extra inputs"),
        (MINIMAL + "[training]\nretrain_every = 0\n", "training.retrain_every: "),
        (MINIMAL + "[training]\nfolds = 1\n", "training.folds: "),
        (MINIMAL + '[training]\nseed = "x"\n', "training.seed: "),
        (MINIMAL + "[kafka]\npartitions = 0\n", "kafka.partitions: "),
        (MINIMAL + '[messages]\nurl = "nonsense"\n', "messages.url: is not a database URL"),
        (MINIMAL + '[mlflow]\ntracking_uri = "host"\n', "mlflow.tracking_uri: is not a URI"),
        (
            MINIMAL + '[sagemaker]\nendpoint = "an_endpoint"\n',
            "sagemaker.endpoint: wants at ",
        ),
        (
            MINIMAL + f'[sagemaker]\nendpoint = "{"a" * 41}"\n',
            "sagemaker.endpoint: wants at ",
        ),
        (MINIMAL + '[sagemaker]\nrole = "admin"\n', "sagemaker.role: wants a role's ARN"),
        (MINIMAL + '[sagemaker]\nbucket = "s3://mine"\n', "sagemaker.bucket: wants the name of"),
        (MINIMAL + '[sagemaker]\nprefix = "/models"\n', "sagemaker.prefix: wants names separated"),
        (
            MINIMAL + '[sagemaker]\npackage_group = "a_b"\n',
            "sagemaker.package_group: wants at ",
        ),
        (
            MINIMAL + '[sagemaker]\nimage = "my image"\n',
            "sagemaker.image: wants an image's",
        ),
        (MINIMAL + '[sagemaker]\ninstance_type = "m5.large"\n', "sagemaker.instance_type: "),
        (MINIMAL + "[sagemaker]\ninstance_count = 0\n", "sagemaker.instance_count: "),
        (MINIMAL + '[sagemaker]\ntimeout = "soon"\n', "sagemaker.timeout: wants seconds, or text"),
        ("training = 1\n" + MINIMAL, "training: "),
        ('[data]\ntrain = "t.csv"\n', "data.target: Field required"),
        ("", "data: Field required"),
    ],
)
def test_mistake_in_the_file_names_the_file_and_the_key(
    config: Path, text: str, reason: str
) -> None:
    config.write_text(text)
    assert refusal({"PIPELINE_CONFIG": str(config)}).startswith(f"{config}: {reason}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETRAIN_EVERY", "many"),
        ("RETRAIN_EVERY", "0"),
        ("EXTRA_MODELS_TO_KEEP", "-1"),
        ("MAX_AGE", "soon"),
        ("MAX_AGE", "-1"),
        ("ON_DRIFT", "perhaps"),
        ("ON_INPUT_DRIFT", "perhaps"),
        ("DRIFT_INTERVAL", "0"),
        ("PARTITIONS", "1.5"),
        ("PIPELINE_NAME", "a/b"),
        ("PIPELINE_NAME", "fra\N{LATIN SMALL LETTER SHARP S}"),
        ("PIPELINE_NAME", "__a"),
        ("PIPELINE_NAME", "a."),
        ("PIPELINE_NAME", "a" * 101),
        ("KAFKA_SECURITY_PROTOCOL", "TLS"),
        ("KAFKA_SASL_MECHANISM", "GSSAPI"),
        ("KAFKA_SSL_CAFILE", "/nowhere.pem"),
        ("KAFKA_SASL_OAUTH_CAFILE", "/nowhere.pem"),
        ("KAFKA_SASL_OAUTH_TOKEN_URL", "ftp://host/token"),
        ("KAFKA_SASL_OAUTH_TOKEN_URL", "host/token"),
        ("KAFKA_SASL_OAUTH_EXTENSIONS", "logicalCluster"),
        ("KAFKA_SASL_OAUTH_EXTENSIONS", "a=b,auth-2=c"),
        ("PIPELINE_LOG", "loud"),
        ("PIPELINE_LOG_FORMAT", "xml"),
    ],
)
def test_mistake_in_a_variable_names_the_variable_and_its_value(name: str, value: str) -> None:
    text = refusal({name: value})
    assert text.startswith(f"{name}: ")
    assert text.endswith(f", not {value!r}")


def test_variable_for_a_section_that_is_no_table_names_the_file(config: Path) -> None:
    config.write_text("training = 1\n" + MINIMAL)
    text = refusal({"PIPELINE_CONFIG": str(config), "RETRAIN_EVERY": "3"})
    assert text.startswith(f"{config}: training: ")


@pytest.mark.parametrize("content", [b"[data\n", b"a = \n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_file_that_is_no_toml_is_named(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    assert refusal({"PIPELINE_CONFIG": str(config)}).startswith(f"{config} is not TOML: ")


def test_missing_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    text = refusal({"PIPELINE_CONFIG": str(missing)})
    assert text == f"cannot read {missing}: No such file or directory"
    assert refusal({"PIPELINE_CONFIG": str(tmp_path)}).startswith(f"cannot read {tmp_path}: ")


@pytest.mark.parametrize("name", ["../x.csv", "/etc/passwd", "a/b.csv", "a/", ".", "..", ""])
def test_data_file_with_a_folder_in_its_name_is_refused(config: Path, name: str) -> None:
    config.write_text(MINIMAL + f'[[data.files]]\nname = "{name}"\nsha256 = "{SHA256}"\n')
    text = refusal({"PIPELINE_CONFIG": str(config)})
    assert text == f"{config}: data.files.0.name: must be a file name without folders"


def test_data_file_needs_a_whole_sha256(config: Path) -> None:
    assert DataFile(name="a.csv", sha256=SHA256).url == ""
    for wrong in ("0" * 63, "0" * 65, "F" * 64, ""):
        config.write_text(MINIMAL + f'[[data.files]]\nname = "a.csv"\nsha256 = "{wrong}"\n')
        assert "data.files.0.sha256: " in refusal({"PIPELINE_CONFIG": str(config)})


# Kafka


@pytest.mark.parametrize(
    "servers",
    [
        "localhost:9092",
        "a:1,b:65535",
        "a:1, b:2",
        "[::1]:9092",
        "[fe80::1%eth0]:9092,a:1",
        "10.0.0.1:9092",
        "SASL_SSL://a:1",
    ],
)
def test_bootstrap_servers_are_hosts_with_ports(servers: str) -> None:
    loaded = settings.load({"KAFKA_BOOTSTRAP_SERVERS": servers})
    assert loaded.kafka.bootstrap_servers == servers


@pytest.mark.parametrize(
    "servers",
    [
        *("nonsense", "host:", ":9092", "host:0", "host:65536", "host:x", "a:1,", "a:1,b"),
        *("::1:9092", "[::1]", "[]:9092", "[::1:9092", "a b:1"),
    ],
)
def test_bootstrap_servers_without_a_port_are_refused(servers: str) -> None:
    text = refusal({"KAFKA_BOOTSTRAP_SERVERS": servers})
    assert text.startswith("KAFKA_BOOTSTRAP_SERVERS: wants host:port")


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize("missing", [name for name in SASL if name.startswith("KAFKA_SASL_")])
def test_sasl_needs_mechanism_username_and_password(protocol: str, missing: str) -> None:
    environment = {**SASL, "KAFKA_SECURITY_PROTOCOL": protocol}
    assert settings.load(environment).kafka.sasl_username == "ann"
    del environment[missing]
    text = refusal(environment)
    assert f"{protocol} needs {missing} as well" in text
    assert "BrokerWord" not in text


OAUTH = {
    "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
    "KAFKA_SASL_OAUTH_TOKEN_URL": "https://host/token",
    "KAFKA_SASL_OAUTH_CLIENT_ID": "ann",
    "KAFKA_SASL_OAUTH_CLIENT_SECRET": "ClientWord",
}


@pytest.mark.parametrize("missing", [name for name in OAUTH if "OAUTH_" in name])
def test_tokens_need_url_client_and_secret(missing: str) -> None:
    assert settings.load(OAUTH).secrets == ("ClientWord",)
    text = refusal({name: value for name, value in OAUTH.items() if name != missing})
    assert text == f"SASL_SSL needs {missing} as well"


def test_tokens_of_aws_need_a_region_alone() -> None:
    kept = {name: value for name, value in OAUTH.items() if "OAUTH_" not in name}
    kafka = settings.load({**kept, "KAFKA_SASL_OAUTH_AWS_REGION": "eu-central-1"}).kafka
    assert kafka.sasl_oauth_aws_region == "eu-central-1"


def test_extensions_are_pairs() -> None:
    text = "logicalCluster=lkc-1, identityPoolId=pool=2"
    kafka = settings.load({**OAUTH, "KAFKA_SASL_OAUTH_EXTENSIONS": text}).kafka
    expected = (("logicalCluster", "lkc-1"), ("identityPoolId", "pool=2"))
    assert kafka.sasl_oauth_extensions == expected


def test_login_is_not_needed_without_sasl() -> None:
    for protocol in ("PLAINTEXT", "SSL"):
        kafka = settings.load({"KAFKA_SECURITY_PROTOCOL": protocol}).kafka
        login = (kafka.sasl_mechanism, kafka.sasl_username, kafka.sasl_password)
        assert login == (None, None, None)


def test_ca_file_without_certificates_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    text = refusal({"KAFKA_SSL_CAFILE": str(file)})
    assert text.startswith("KAFKA_SSL_CAFILE: cannot read certificates (")


# Secrets


def test_errors_do_not_contain_secrets() -> None:
    secrets = {
        "KAFKA_SASL_PASSWORD": "BrokerWord",
        "KAFKA_SASL_OAUTH_CLIENT_SECRET": "ClientWord",
        "MESSAGES_URL": DATABASE_URL,
    }
    words = ("BrokerWord", "ClientWord", "DatabaseWord", "ParameterWord")
    for wrong in (
        {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},  # needs more than a password
        {"MESSAGES_URL": "nonsense:DatabaseWord"},
        {"RETRAIN_EVERY": "many"},
    ):
        text = refusal({**secrets, **wrong})
        assert not [word for word in words if word in text]


def test_mistake_in_a_secret_names_the_variable_alone(config: Path) -> None:
    text = refusal({"MESSAGES_URL": "nonsense:DatabaseWord"})
    assert text.startswith("MESSAGES_URL: is not a database URL")
    assert "DatabaseWord" not in text
    text = refusal({"MLFLOW_TRACKING_URI": "//user:s3cret@host"})
    assert "MLFLOW_TRACKING_URI: is not a URI" in text
    assert "s3cret" not in text
    config.write_text(MINIMAL + '[messages]\nurl = "nonsense:DatabaseWord"\n')
    assert "DatabaseWord" not in refusal({"PIPELINE_CONFIG": str(config)})


def test_repr_does_not_show_the_password() -> None:
    loaded = settings.load(SASL)
    assert isinstance(loaded.kafka, Kafka)
    for text in (repr(loaded.kafka), str(loaded.kafka), repr(loaded), loaded.model_dump_json()):
        assert "BrokerWord" not in text


def test_repr_does_not_show_logins_inside_urls() -> None:
    tracking = "https://me:TrackingWord@127.0.0.1:1"
    loaded = settings.load({"MESSAGES_URL": DATABASE_URL, "MLFLOW_TRACKING_URI": tracking})
    assert "Word" not in repr(loaded)
    assert (loaded.messages.url, loaded.mlflow.tracking_uri) == (DATABASE_URL, tracking)


def test_secrets_are_listed_for_the_log_filter() -> None:
    loaded = settings.load({**SASL, "MESSAGES_URL": DATABASE_URL})
    assert loaded.secrets == ("BrokerWord", "DatabaseWord", "ParameterWord")
    assert settings.load({}).secrets == ()


# Help


def test_help_names_every_variable_with_its_default() -> None:
    lines = settings.environment_help().splitlines()
    assert lines[0] == "environment variables:"
    assert [line.split()[0] for line in lines[1:]] == [variable.name for variable in VARIABLES]
    defaults = {
        "KAFKA_BOOTSTRAP_SERVERS": "(default: localhost:9092)",
        "KAFKA_SECURITY_PROTOCOL": "(default: PLAINTEXT)",
        "PIPELINE_HOME": "(default: the root of the clone)",
        "RETRAIN_EVERY": "(default: 25)",
        "MAX_AGE": "(default: 0)",
        "ON_DRIFT": "(default: True)",
        "ON_INPUT_DRIFT": "(default: False)",
        "DRIFT_INTERVAL": "(default: 500)",
        "EXTRA_MODELS_TO_KEEP": "(default: 1)",
        "PARTITIONS": "(default: 1)",
        "METRICS_HOST": "(default: 127.0.0.1)",
        "MLFLOW_EXPERIMENT_NAME": "(default: the target's name)",
        "SAGEMAKER_BASE_DIR": "(default: /opt/ml)",
        "SAGEMAKER_BIND_TO_PORT": "(default: 8080)",
    }
    for variable, line in zip(VARIABLES, lines[1:], strict=True):
        assert variable.meaning in line
        if variable.name in defaults:
            assert line.endswith(defaults[variable.name])
        else:
            assert "(default" not in line


def test_variables_are_named_once_and_lead_to_settings() -> None:
    names = [variable.name for variable in VARIABLES]
    assert len(set(names)) == len(names)
    loaded = settings.load({})
    for variable in VARIABLES:
        value_of(loaded, variable.path)  # raises where there is no such setting
