"""A cluster that is reached by certificates, passwords or tokens, and who issues those."""

import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote_plus

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from utils.broker import SHORT_LIVED, Broker, free_port

USER, PASSWORD = "ann", "p\xe4ssword of 'ann'"
PLAIN_PASSWORD = "PlainWord-4711"
KEY_PASSWORD = "KeyWord-4711"
CLIENT, CLIENT_SECRET = "pipeline", "Client/Word+4711"
AUDIENCE = "kafka"

# Reasons of a refusal
REFUSED = "refused user 'ann': Authentication failed"
UNKNOWN = "is not trusted: unable to get local issuer certificate"
EXPIRED = "is not trusted: certificate has expired"
NO_CERTIFICATE = "certificate required (KAFKA_SSL_CERTFILE is not set)"
OTHER_CERTIFICATE = "certificate unknown (KAFKA_SSL_CERTFILE is "
NO_TOKEN = "for client 'pipeline': HTTP status 401, invalid_client: no such client"
OTHER_TOKEN = "refused the token from https://127.0.0.1:"


class Authority:
    """A certificate authority for the tests; its certificate is `<name>.crt`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = _x509_name(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._signed(self._name, self._key.public_key(), days=30, authority=True)
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(certificate)

    def issue(self, name: str, *, days: int = 30, age: int = 40, password: str = "") -> Path:
        """Write a key and a certificate for this machine to one file.

        Args:
            name: The subject, and the file's name.
            days: How long it is valid from now on.
            age: How long it has been valid, in days.
            password: The key's password, if it has one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        path = self._folder / f"{name}.pem"
        certificate = self._signed(_x509_name(name), key.public_key(), days=days, age=age)
        path.write_bytes(secret + certificate)
        return path

    def _signed(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        days: int,
        age: int = 40,
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
            .not_valid_before(now - datetime.timedelta(days=age))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(here), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _x509_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


class IdentityProvider:
    """Issues signed tokens over HTTPS to those who know the client's secret.

    Args:
        certificate: The server's key and certificate.

    Attributes:
        lifetime: Of the tokens to come, in seconds.
        answer: If set, the status and the body that it answers instead.
        delay: How long an answer takes, in seconds.
        scopes: The scope of each request for a token.
    """

    def __init__(self, certificate: Path) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.lifetime = 3600
        self.answer: tuple[int, bytes] | None = None
        self.delay = 0.0
        self.scopes: list[str] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                time.sleep(provider.delay)
                status, answer = provider.respond(self.headers["Authorization"], body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}/token"

    @contextmanager
    def running(self) -> Iterator["IdentityProvider"]:
        """Answer requests."""
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def respond(self, authorization: str, body: str) -> tuple[int, bytes]:
        """Status and body for one request (RFC 6749, sections 2.3.1, 4.4 and 5)."""
        asked = {name: values[0] for name, values in parse_qs(body).items()}
        self.scopes.append(asked.get("scope", ""))
        if self.answer is not None:
            return self.answer
        client, _, secret = b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if (unquote_plus(client), unquote_plus(secret)) != (CLIENT, CLIENT_SECRET):
            return 401, b'{"error": "invalid_client", "error_description": "no such client"}'
        if asked.get("grant_type") != "client_credentials":
            return 400, b'{"error": "unsupported_grant_type"}'
        audience = AUDIENCE if asked.get("scope") == "kafka" else "another"
        token = {
            "access_token": self.token(aud=audience),
            "token_type": "Bearer",
            "expires_in": self.lifetime,
        }
        return 200, json.dumps(token).encode()

    def token(self, **claims: object) -> str:
        """A signed token."""
        now = time.time()
        payload = {"sub": CLIENT, "iss": self.url, "iat": now}
        payload |= {"exp": now + self.lifetime, **claims}
        signed = f"{_base64({'alg': 'RS256', 'kid': 'test'})}.{_base64(payload)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_base64(signature)}"

    def keys(self) -> str:
        """The public key as a JSON Web Key Set."""
        public = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "kid": "test", "alg": "RS256", "use": "sig"}
        key |= {"n": _base64(public.n.to_bytes(256)), "e": _base64(public.e.to_bytes(3))}
        return json.dumps({"keys": [key]})


def _base64(value: bytes | dict[str, object] | dict[str, str]) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).decode().rstrip("=")


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback address."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


class Cluster:
    """A broker with a listener for each way to log in; one has an expired certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.authority = Authority(folder, "authority")
        self.stranger = Authority(folder, "stranger")
        self.provider = IdentityProvider(self.authority.issue("provider"))
        keys = folder / "keys.json"
        keys.write_text(self.provider.keys())
        listeners = {
            name: f"127.0.0.1:{free_port()}" for name in ("SASL_SSL", "EXPIRED", "MUTUAL", "TOKENS")
        }
        self.ipv6 = f"[::1]:{free_port()}" if has_ipv6() else ""
        if self.ipv6:
            listeners["V6"] = self.ipv6
        protocols = {"MUTUAL": "SSL", "TOKENS": "SASL_PLAINTEXT", "V6": "PLAINTEXT"}
        overrides = {
            "listeners": ",".join(f"{name}://{at}" for name, at in listeners.items()),
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
            + ",".join(f"{name}:{protocols.get(name, 'SASL_SSL')}" for name in listeners),
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.authority.issue("good")),
            "listener.name.expired.ssl.keystore.type": "PEM",
            "listener.name.expired.ssl.keystore.location": str(
                self.authority.issue("expired", days=-1)
            ),
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.mutual.ssl.truststore.type": "PEM",
            "listener.name.mutual.ssl.truststore.location": str(self.authority.file),
            "listener.name.tokens.sasl.enabled.mechanisms": "OAUTHBEARER",
            "sasl.oauthbearer.jwks.endpoint.url": keys.as_uri(),
            "sasl.oauthbearer.expected.audience": AUDIENCE,
            "sasl.oauthbearer.expected.issuer": self.provider.url,
        }
        security = "org.apache.kafka.common.security"
        tokens = "listener.name.tokens.oauthbearer"
        overrides |= {
            f"{tokens}.connections.max.reauth.ms": "60000",
            f"{tokens}.sasl.jaas.config": (
                f"{security}.oauthbearer.OAuthBearerLoginModule required;"
            ),
            f"{tokens}.sasl.server.callback.handler.class": (
                f"{security}.oauthbearer.OAuthBearerValidatorCallbackHandler"
            ),
        }
        for listener in ("sasl_ssl", "expired"):
            overrides |= {
                f"listener.name.{listener}.scram-sha-512.sasl.jaas.config": (
                    f"{security}.scram.ScramLoginModule required;"
                ),
                f"listener.name.{listener}.plain.sasl.jaas.config": (
                    f'{security}.plain.PlainLoginModule required user_bob="{PLAIN_PASSWORD}";'
                ),
            }
        allowed = f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={keys.as_uri()}"
        self.broker = Broker(
            folder / "broker",
            overrides=overrides,
            scram={USER: PASSWORD},
            jvm=(*SHORT_LIVED, allowed),
        )
        self.login = {
            "KAFKA_BOOTSTRAP_SERVERS": listeners["SASL_SSL"],
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": PASSWORD,
            "KAFKA_SSL_CAFILE": str(self.authority.file),
        }
        self.mutual_tls = {
            "KAFKA_BOOTSTRAP_SERVERS": listeners["MUTUAL"],
            "KAFKA_SECURITY_PROTOCOL": "SSL",
            "KAFKA_SSL_CAFILE": str(self.authority.file),
            "KAFKA_SSL_CERTFILE": str(self.authority.issue("client", password=KEY_PASSWORD)),
            "KAFKA_SSL_KEY_PASSWORD": KEY_PASSWORD,
        }
        self.no_certificate = {
            name: value
            for name, value in self.mutual_tls.items()
            if name not in ("KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEY_PASSWORD")
        }
        self.token_login = {
            "KAFKA_BOOTSTRAP_SERVERS": listeners["TOKENS"],
            "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
            "KAFKA_SASL_OAUTH_TOKEN_URL": self.provider.url,
            "KAFKA_SASL_OAUTH_CLIENT_ID": CLIENT,
            "KAFKA_SASL_OAUTH_CLIENT_SECRET": CLIENT_SECRET,
            "KAFKA_SASL_OAUTH_SCOPE": "kafka",
            "KAFKA_SASL_OAUTH_CAFILE": str(self.authority.file),
        }
        self.wrong = {
            REFUSED: {**self.login, "KAFKA_SASL_PASSWORD": "wrong-Word"},
            UNKNOWN: {**self.login, "KAFKA_SSL_CAFILE": str(self.stranger.file)},
            EXPIRED: {**self.login, "KAFKA_BOOTSTRAP_SERVERS": listeners["EXPIRED"]},
            NO_CERTIFICATE: self.no_certificate,
            OTHER_CERTIFICATE: {
                **self.no_certificate,
                "KAFKA_SSL_CERTFILE": str(self.stranger.issue("other")),
            },
            NO_TOKEN: {**self.token_login, "KAFKA_SASL_OAUTH_CLIENT_SECRET": "wrong-Word"},
            OTHER_TOKEN: {**self.token_login, "KAFKA_SASL_OAUTH_SCOPE": "not for Kafka"},
        }

    @contextmanager
    def running(self) -> Iterator["Cluster"]:
        """Run the broker and the identity provider."""
        with self.provider.running(), self.broker:
            yield self
