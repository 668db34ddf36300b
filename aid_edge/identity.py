"""The fleet's certificate authority: who is the hub, and who is which device, on a connection.

Keys are P-256 (what every TLS stack of a small device has). A device's certificate has its id as
common name; the broker takes that as user name and client id, so a device cannot be another one.

The names of files are fixed here, for the hub and for bundles::

    keys/ca.key                                   the authority's private key
    hub/ca.pem  hub/server.pem  hub/server.key    what the broker and the API show
    hub/api-token                                 the administrator's token
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aid_edge.errors import HomeError, UsageError
from device_agent.contract.names import check_identifier
from device_agent.contract.topics import check_device

CA_KEY = "ca.key"
CA_CERTIFICATE = "ca.pem"
HUB_KEY = "server.key"
HUB_CERTIFICATE = "server.pem"
API_TOKEN = "api-token"  # noqa: S105 - a file name
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Names that every hub certificate is good for."""

TOKEN_BYTES = 32
AUTHORITY_DAYS = 20 * 365
LEAF_DAYS = 10 * 365
"""As long as a device may stay in the field: there is no renewal that it could miss."""

NOT_BEFORE = dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
"""A device without a clock starts in 1970 and must still be able to connect. What is too old is
refused by expiry of signed metadata, against a clock floor, not by the start of a certificate."""


@dataclass(frozen=True)
class HubFiles:
    """Where the hub's certificates and token lie."""

    ca: Path
    certificate: Path
    key: Path
    token: Path


def hub_files(hub: Path) -> HubFiles:
    """Return the paths of certificates and token in the hub's folder."""
    return HubFiles(hub / CA_CERTIFICATE, hub / HUB_CERTIFICATE, hub / HUB_KEY, hub / API_TOKEN)


def new_api_token() -> str:
    """Return a fresh administrator's token: 32 random bytes, URL-safe."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def read_api_token(hub: Path) -> str:
    """Return the administrator's token of the hub whose folder this is.

    Raises:
        HomeError: It cannot be read.
    """
    path = hub / API_TOKEN
    try:
        return path.read_text().strip()
    except OSError as e:
        raise HomeError(f"{path}: cannot be read: {e.strerror}") from e


class Authority:
    """Signs the certificates of one fleet."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, fleet: str, *, now: dt.datetime) -> Authority:
        """Return a new authority for ``fleet`` with a key of its own."""
        check_identifier("fleet", fleet)
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"AID Edge fleet {fleet}")
        public = key.public_key()
        certificate = (
            _builder(name, name, public, now + dt.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def open(cls, keys: Path, hub: Path) -> Authority:
        """Return the authority whose key lies in ``keys`` and whose certificate lies in ``hub``.

        Raises:
            HomeError: One of them is missing or broken, or they do not belong together.
        """
        try:
            key = serialization.load_pem_private_key((keys / CA_KEY).read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((hub / CA_CERTIFICATE).read_bytes())
        except OSError as e:
            raise HomeError(f"{e.filename}: cannot be read: {e.strerror}") from e
        except (ValueError, TypeError) as e:
            raise HomeError(f"the certificate authority cannot be read: {e}") from e
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise HomeError(f"{keys / CA_KEY} is not the key of {hub / CA_CERTIFICATE}")
        return cls(key, certificate)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS #8."""
        return _private_pem(self._key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate that devices and hub trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue_device(self, device: str, *, now: dt.datetime | None = None) -> tuple[bytes, bytes]:
        """Return a new private key and a client certificate for ``device``, both PEM.

        Raises:
            MalformedMessageError: ``device`` is not a valid identifier.
        """
        check_device(device)
        return self._issue(device, ExtendedKeyUsageOID.CLIENT_AUTH, (), now)

    def issue_hub(
        self, hosts: Sequence[str] = (), *, now: dt.datetime | None = None
    ) -> tuple[bytes, bytes]:
        """Return a new private key and a server certificate for the hub, both PEM.

        Args:
            hosts: Names and addresses that devices reach it by, besides ``LOCAL_HOSTS``.
            now: Time of issue; the present one by default.

        Raises:
            UsageError: One of ``hosts`` is neither a DNS name nor an address.
        """
        names = [_general_name(h) for h in dict.fromkeys((*LOCAL_HOSTS, *hosts))]
        return self._issue("hub", ExtendedKeyUsageOID.SERVER_AUTH, names, now)

    def _issue(
        self,
        common_name: str,
        purpose: x509.ObjectIdentifier,
        names: Sequence[x509.GeneralName],
        now: dt.datetime | None,
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        issued = now or dt.datetime.now(dt.UTC)
        until = min(issued + dt.timedelta(days=LEAF_DAYS), self._certificate.not_valid_after_utc)
        issuer = self._certificate.public_key()
        builder = (
            _builder(_name(common_name), self._certificate.subject, public, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer),  # type: ignore[arg-type]
                critical=False,
            )
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return _private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    until: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if len(host) > 253 or not all(
        0 < len(label) < 64 and label.isascii() and label.replace("-", "").isalnum()
        for label in labels
    ):
        raise UsageError(
            f"{host!r} is neither a DNS name nor an IP address",
            hint="Such as hub.local or 192.0.2.7.",
        )
    return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
