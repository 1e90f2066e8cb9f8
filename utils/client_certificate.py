"""Checks the certificate and the key by which a client is known to a broker (mutual TLS)."""

import ssl
import time
from pathlib import Path


class CertificateError(ValueError):
    """A certificate that no broker would accept.

    Attributes:
        at_fault: What is wrong: "certfile", "keyfile" or "key_password".
    """

    def __init__(self, at_fault: str, reason: str) -> None:
        super().__init__(reason)
        self.at_fault = at_fault


def check_certificate(certfile: Path, keyfile: Path | None, password: str | None) -> None:
    """Check that the files can be read and fit together, and that the certificate is valid now.

    Args:
        certfile: The certificate and those of its intermediate authorities, PEM.
        keyfile: The key, PEM; None if `certfile` holds it as well.
        password: The key's password, if it has one.

    Raises:
        CertificateError: Anything is wrong with them.
    """
    _check_dates(certfile)
    key = keyfile or certfile
    try:
        # An empty password instead of None: OpenSSL would ask for one on the terminal.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(certfile, keyfile, password or "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError("keyfile", f"{key} is not the certificate's key") from None
        if "ENCRYPTED" not in key.read_text("ascii", "replace"):
            raise CertificateError("keyfile", f"there is no key in {key}") from None
        reason = "is wrong" if password else "is missing"
        raise CertificateError("key_password", f"the password of {key} {reason}") from None
    except OSError as error:
        raise CertificateError("keyfile", f"cannot read {key} ({error.strerror})") from None
    except ValueError as error:  # more than 1,024 bytes
        raise CertificateError("key_password", str(error)) from None


def _check_dates(certfile: Path) -> None:
    try:
        certfile.open("rb").close()
        # The one function of the standard library that reads a certificate without trusting it.
        certificate = ssl._ssl._test_decode_cert(str(certfile))  # type: ignore[attr-defined]
    except ssl.SSLError:
        raise CertificateError("certfile", f"there is no certificate in {certfile}") from None
    except OSError as error:
        raise CertificateError("certfile", f"cannot read {certfile} ({error.strerror})") from None
    begin, end, now = certificate["notBefore"], certificate["notAfter"], time.time()
    if now < ssl.cert_time_to_seconds(begin):
        raise CertificateError("certfile", f"{certfile} is not valid before {begin}")
    if now > ssl.cert_time_to_seconds(end):
        raise CertificateError("certfile", f"{certfile} has expired on {end}")
