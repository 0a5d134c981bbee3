"""The way to a cluster's job server, and a sentence for each way in which it can be closed."""

import logging
import os
from dataclasses import dataclass
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import LocationParseError

from vaegen_ray.config.url_secrets import without_url_secrets
from vaegen_ray.errors import ClusterError, ClusterUnavailableError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TOKEN_FILE = "~/.ray/auth_token"
TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Connection:
    """An open way."""

    address: str
    needs_token: bool
    client: Any
    """A ray.job_submission.JobSubmissionClient; Ray does not annotate it."""

    @property
    def is_exposed(self) -> bool:
        """Whether anybody who reaches the address may run code on the cluster: from outside, and without a token."""
        return not self.needs_token and not is_loopback(urlsplit(self.address).hostname or "")


def resolved_address(address: str | None) -> str:
    """The address that was given, or that of Ray's variables, or the dashboard's usual place on this machine."""
    name = "--address" if address else next((name for name in ADDRESS_VARIABLES if os.environ.get(name)), "")
    found = address or os.environ.get(name, DEFAULT_ADDRESS)
    if found.startswith("ray://"):
        raise ClusterError(
            f"{name}: must be that of the dashboard, such as http://head:8265, got {without_url_secrets(found)}, that "
            "of Ray Client"
        )
    full = (found if "://" in found else f"http://{found}").rstrip("/")
    if "@" in full or without_url_secrets(full) != full:
        raise ClusterError(
            f"{name}: must hold no user and no password, because Ray shows it to all who use the cluster; put Ray's "
            f"token into {TOKEN_FILE} or RAY_AUTH_TOKEN, and reach a dashboard behind a login through a tunnel"
        )
    return full


def connect(address: str | None) -> Connection:
    """Open the way to the job server at ``address``.

    ClusterUnavailableError where nothing answers; ClusterError, which says what to do, where it is no dashboard, asks
    for a token, refuses ours, presents a certificate that is not trusted, or runs another version of Ray.
    """
    address = resolved_address(address)
    token = None
    answer = _ask(address, {})
    needs_token = answer.status_code in (401, 403)
    if needs_token:
        token = _token()
        if token is None:
            raise ClusterError(
                f"{address} asks for a token: put the cluster's into {TOKEN_FILE}, or set RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH"
            )
        answer = _ask(address, {"Authorization": f"Bearer {token}"})
        if answer.status_code in (401, 403):
            raise ClusterError(
                f"{address} refuses the token of {_token_place()} ({answer.status_code}); it is another cluster's, or "
                "the cluster has a new one: copy it again"
            )
    _check_version(address, answer)
    return Connection(address, needs_token, _client(address, token))


def _ask(address: str, headers: dict[str, str]) -> requests.Response:
    try:
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=TIMEOUT_S)
    except requests.exceptions.SSLError as error:
        raise ClusterError(_tls_failure(address, _innermost(error))) from error
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationParseError) as error:
        raise ClusterError(f"--address: must be like http://head:8265, got {address} ({error})") from error
    except requests.exceptions.Timeout as error:
        raise ClusterUnavailableError(
            f"{address} does not answer within {TIMEOUT_S:.0f} s; check the address, the network and the firewall"
        ) from error
    except requests.exceptions.RequestException as error:
        raise ClusterUnavailableError(
            f"no dashboard answers at {address} ({_innermost(error)}); check the address (http://HEAD:8265), that the "
            "cluster runs, and the tunnel to it, if there is one"
        ) from error
    if answer.status_code >= 500:
        raise ClusterUnavailableError(
            f"{address} answers, but has failed (HTTP {answer.status_code}): its head is just beginning, or is away "
            "and a proxy answers in its place; look whether the cluster runs, and try again"
        )
    return answer


def _tls_failure(address: str, reason: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return (
            f"{address} presents a certificate that is not trusted ({reason}); set REQUESTS_CA_BUNDLE to the file of "
            "its authority"
        )
    if any(word in reason for word in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")):
        return f"{address} speaks no TLS ({reason}); use http://"
    return f"no TLS connection to {address} could be made ({reason}); check the address and the proxy that ends TLS"


def _innermost(error: BaseException) -> str:
    reason = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    return str(reason).rsplit(">: ", 1)[-1]


def _check_version(address: str, answer: requests.Response) -> None:
    try:
        theirs = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{address} answers, but is no Ray dashboard (HTTP {answer.status_code}); its usual port is 8265, while "
            "6379 and 10001 are others of Ray"
        ) from error
    ours = metadata.version("ray")
    if theirs != ours:
        raise ClusterError(
            f"{address} runs Ray {theirs}, this machine has Ray {ours}; they must be the same: "
            f"`pip install 'ray=={theirs}'` here, or use an image with {ours} there"
        )


def _client(address: str, token: str | None) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    import vaegen_ray.on_ray  # noqa: F401  (settings that ray reads when it is imported)

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # They would win over the address.
    before = {name: os.environ.pop(name) for name in ADDRESS_VARIABLES if name in os.environ}
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except AuthenticationError as error:  # RAY_AUTH_MODE=token, and a cluster that asks for none.
        raise ClusterError(
            f"RAY_AUTH_MODE: must not be `token` without a token ({str(error).split('. ')[0]}); {address} asks for "
            "none, so unset it"
        ) from error
    finally:
        os.environ.update(before)


def _token() -> str | None:
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    try:
        return Path(_token_place()).expanduser().read_text().strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ClusterError(
            f"RAY_AUTH_TOKEN_PATH: must be the file that holds the cluster's token, cannot read {_token_place()} "
            f"({reason}); correct it, or unset it to use {TOKEN_FILE}"
        ) from error


def _token_place() -> str:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine, by its name or number."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
