"""The way to a cluster's job server: each way in which it can be closed has its sentence."""

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.on_ray.dashboards import forget_clusters, served, version_of
from vaegen_ray.errors import ClusterError, ClusterUnavailableError
from vaegen_ray.on_ray.connection import Connection, connect, is_loopback, resolved_address
from vaegen_ray.on_ray.probe_findings import Findings
from vaegen_ray.on_ray.submit import check_exposure

TOKEN = "a-token-of-the-test"


@contextmanager
def dashboard(
    *, version: str | None = None, token: str | None = None, body: bytes | None = None, failure: int | None = None
) -> Iterator[str]:
    """A server that answers as a dashboard would, or with ``body``, or with the status ``failure``."""

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        given = request.headers.get("Authorization")
        status = 200 if token is None or given == f"Bearer {token}" else (403 if given else 401)
        return failure or status, body if body is not None else json.dumps(version_of(version)).encode()

    with served(answer) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_clusters(tmp_path, monkeypatch)


def test_nothing_at_the_address_says_what_to_check() -> None:
    with pytest.raises(
        ClusterUnavailableError, match=r"no dashboard answers at http://127.0.0.1:9 .* check the address"
    ):
        connect("http://127.0.0.1:9")


def test_another_server_at_the_address_is_told_from_a_dashboard() -> None:
    with (
        dashboard(body=b"<html>") as address,
        pytest.raises(ClusterError, match=r"is no Ray dashboard .* port is 8265"),
    ):
        connect(address)


def test_proxy_whose_head_is_away_counts_as_an_absence_that_passes() -> None:
    with (
        dashboard(body=b"<html>", failure=503) as address,
        pytest.raises(ClusterUnavailableError, match=r"has failed \(HTTP 503\): its head is .* try again"),
    ):
        connect(address)


@pytest.mark.parametrize("address", ["http://a..b:8265", "http://" + "a" * 70, "http://[::1", "htp://head"])
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match=r"^--address: must be like http://head:8265, got "):
        connect(address)


@pytest.mark.parametrize(
    "address",
    ["http://user:planted@host:8265", "planted@host:8265", "http://u:pla/nted@host", "https://h/?token=planted"],
)
def test_address_with_a_password_is_refused_and_not_repeated(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusterError, match=r"^--address: must hold no user and no password") as caught:
        resolved_address(address)
    assert "nted" not in str(caught.value)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: must hold no user and no password, .* or RAY_AUTH_TOKEN"):
        resolved_address(None)


def test_tls_to_a_port_without_says_so() -> None:
    with dashboard() as address, pytest.raises(ClusterError, match=r"speaks no TLS .* use http://"):
        connect(address.replace("http://", "https://"))


def test_address_of_ray_client_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"must be that of the dashboard, .* got ray://head:10001"):
        connect("ray://head:10001")


def test_missing_token_says_where_to_put_it() -> None:
    with dashboard(token=TOKEN) as address, pytest.raises(ClusterError, match=r"asks for a token: .*RAY_AUTH_TOKEN"):
        connect(address)


def test_wrong_token_says_which_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with (
        dashboard(token=TOKEN) as address,
        pytest.raises(ClusterError, match=r"refuses the token of RAY_AUTH_TOKEN \(403\)"),
    ):
        connect(address)


def test_token_file_that_is_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    with (
        dashboard(token=TOKEN) as address,
        pytest.raises(ClusterError, match=r"^RAY_AUTH_TOKEN_PATH: must be the file .* \(Is a directory\)"),
    ):
        connect(address)


def test_empty_name_of_the_token_file_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with dashboard(token=TOKEN) as address:
        with pytest.raises(ClusterError, match=r"asks for a token: put the cluster's into ~/.ray/auth_token"):
            connect(address)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
        assert connect(address).needs_token


def test_right_token_opens_and_goes_to_nobody_who_does_not_ask(tmp_path: Path) -> None:
    (tmp_path / "auth_token").write_text(TOKEN + "\n")
    with dashboard(token=TOKEN) as address:
        assert connect(address).needs_token
    with dashboard() as address:
        connection = connect(address)
    assert not connection.needs_token
    assert "Authorization" not in connection.client._headers


def test_another_version_of_ray_says_both() -> None:
    with (
        dashboard(version="2.9.0") as address,
        pytest.raises(ClusterError, match=r"runs Ray 2\.9\.0, this machine has Ray"),
    ):
        connect(address)


def test_certificate_that_is_not_trusted_says_how_to_trust_it(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "head")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    file = tmp_path / "head.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(ClusterError, match=r"certificate that is not trusted .* REQUESTS_CA_BUNDLE"):
        connect(f"https://127.0.0.1:{server.server_address[1]}")
    server.shutdown()


def test_address_comes_from_the_argument_then_from_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert resolved_address(None) == "http://other:8265"
    assert resolved_address("head:8265/") == "http://head:8265"


@pytest.mark.parametrize(
    ("connection", "findings", "is_refused"),
    [
        (Connection("http://10.0.0.7:8265", needs_token=False, client=None), None, True),
        (Connection("http://head:8265", needs_token=False, client=None), None, True),
        (Connection("http://10.0.0.7:8265", needs_token=True, client=None), Findings(dashboard="0.0.0.0"), False),
        (Connection("http://127.0.0.1:8265", needs_token=False, client=None), None, False),
        (Connection("http://localhost:8265", needs_token=False, client=None), Findings(dashboard="127.0.0.1"), False),
        (Connection("http://localhost:8265", needs_token=False, client=None), Findings(dashboard="10.0.0.7"), True),
        # The dashboard is no more than one of the doors.
        (
            Connection("http://127.0.0.1:8265", needs_token=False, client=None),
            Findings(dashboard="127.0.0.1", head="192.0.2.2"),
            True,
        ),
    ],
)
def test_cluster_that_anybody_can_use_is_refused(
    connection: Connection, findings: Findings | None, is_refused: bool
) -> None:
    if is_refused:
        with pytest.raises(ClusterError, match=r"has no authentication and can be reached from outside .* --insecure"):
            check_exposure(connection, findings)
    else:
        check_exposure(connection, findings)


def test_loopback_is_this_machine_only() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("head")
