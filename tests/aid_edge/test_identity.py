from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from aid_edge.errors import HomeError, UsageError
from aid_edge.identity import Authority, hub_files, read_api_token
from device_agent.contract.errors import MalformedMessageError
from tests.support.releases import NOW, make_home


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("fleet-a", now=NOW)


def certificate(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_a_device_certificate_names_the_device_and_nothing_else(authority: Authority) -> None:
    key_pem, pem = authority.issue_device("camera-01", now=NOW)
    found = certificate(pem)
    (common_name,) = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert common_name.value == "camera-01"
    found.verify_directly_issued_by(certificate(authority.certificate_pem))
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    usage = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert b"BEGIN PRIVATE KEY" in key_pem


def test_the_hub_certificate_is_good_for_this_machine_and_the_named_hosts(
    authority: Authority,
) -> None:
    _, pem = authority.issue_hub(["hub.example.org", "192.0.2.7"], now=NOW)
    names = certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "hub.example.org"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address(a) for a in ("127.0.0.1", "::1", "192.0.2.7")
    }


@pytest.mark.parametrize("host", ["", "no host", "a..b", "x" * 64, "http://hub", "höb", "a/b", "*"])
def test_what_is_no_host_is_refused(authority: Authority, host: str) -> None:
    with pytest.raises(UsageError):
        authority.issue_hub([host], now=NOW)


@pytest.mark.parametrize("device", ["", "Camera", "a/b", "a+b", "#", "a\n", "cast", "x" * 64])
def test_what_is_no_device_id_is_refused(authority: Authority, device: str) -> None:
    with pytest.raises(MalformedMessageError):
        authority.issue_device(device, now=NOW)


def test_certificates_hold_from_1970_and_not_longer_than_the_authority(
    authority: Authority,
) -> None:
    """A device without a clock must be able to connect."""
    end = certificate(authority.certificate_pem).not_valid_after_utc
    for pem in (authority.issue_device("a", now=end - dt.timedelta(days=1))[1],
                authority.issue_hub(now=NOW)[1], authority.certificate_pem):  # fmt: skip
        assert certificate(pem).not_valid_before_utc.year == 1970
        assert certificate(pem).not_valid_after_utc <= end


def test_an_authority_is_what_it_was_after_a_restart(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    again = Authority.open(home.keys, home.hub)
    assert again.certificate_pem == hub_files(home.hub).ca.read_bytes()
    found = certificate(again.issue_device("camera-01")[1])
    found.verify_directly_issued_by(certificate(again.certificate_pem))


def test_key_and_certificate_of_two_homes_do_not_mix(tmp_path: Path) -> None:
    one, two = make_home(tmp_path / "one"), make_home(tmp_path / "two")
    with pytest.raises(HomeError, match="is not the key of"):
        Authority.open(one.keys, two.hub)
    hub_files(one.hub).ca.write_text("no certificate")
    with pytest.raises(HomeError):
        Authority.open(one.keys, one.hub)
    hub_files(one.hub).ca.unlink()
    with pytest.raises(HomeError, match="cannot be read"):
        Authority.open(one.keys, one.hub)


def test_the_token_is_long_and_fresh(tmp_path: Path) -> None:
    one, two = make_home(tmp_path / "one"), make_home(tmp_path / "two")
    assert read_api_token(one.hub) != read_api_token(two.hub)
    hub_files(one.hub).token.unlink()
    with pytest.raises(HomeError):
        read_api_token(one.hub)


def test_hub_and_device_shake_hands_and_strangers_do_not(tmp_path: Path) -> None:
    """Real TLS both ways, with OpenSSL's strict checks of certificates."""
    home = make_home(tmp_path / "home")
    stranger = make_home(tmp_path / "stranger")
    assert shake_hands(home.hub, Authority.open(home.keys, home.hub), tmp_path) == "camera-01"
    with pytest.raises(ssl.SSLError):
        shake_hands(home.hub, Authority.open(stranger.keys, stranger.hub), tmp_path)


def shake_hands(hub: Path, authority: Authority, folder: Path) -> str:
    """Return the common name that the hub sees of a device certified by ``authority``."""
    key, pem = authority.issue_device("camera-01")
    (folder / "device.key").write_bytes(key)
    (folder / "device.pem").write_bytes(pem)
    files = hub_files(hub)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.key)
    server.load_verify_locations(files.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(files.ca))
    client.load_cert_chain(folder / "device.pem", folder / "device.key")
    for context in (server, client):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    here, there = socket.socketpair()
    failed: list[OSError] = []

    def connect() -> None:
        try:
            with client.wrap_socket(there, server_hostname="127.0.0.1") as tls:
                tls.recv(1)
        except OSError as e:
            failed.append(e)

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        with server.wrap_socket(here, server_side=True) as tls:
            peer = tls.getpeercert()
            tls.send(b"!")
    finally:
        here.close()
        thread.join()
        there.close()
    assert not failed
    assert peer is not None
    return str(dict(pair[0] for pair in peer["subject"])["commonName"])
