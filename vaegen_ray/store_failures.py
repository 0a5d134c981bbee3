"""How object stores fail: which failures pass, how long it is worth to wait, and what to say in the end."""

PATIENCE_S = 60.0
"""How long an operation is repeated while the store is there, but fails."""

NO_STORE_PATIENCE_S = 15.0
"""The same while nothing that speaks S3 answers: most often the endpoint is wrong, and the run would seem to hang."""

PASSING_CODES = {"SlowDown", "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
"""Errors of S3 that a repetition cures, whatever their HTTP status."""


class CutShortError(ConnectionError):
    """Fewer bytes came than the store holds."""


def diagnosis(error: Exception) -> tuple[float, str]:
    """For how long a failure like ``error`` is worth repeating, in seconds, and what to say of it in the end."""
    # Imported here: a run on local files needs neither, and starts sooner.
    import aiohttp
    from botocore import exceptions, parsers

    if isinstance(error, exceptions.EndpointConnectionError):
        # aiobotocore says so too of a connection that broke later on.
        error = error.kwargs["error"]
    status, code = _answer(error)
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if code:
        # s3fs keeps the store's message alone; the answer to a HEAD has no code but the status.
        text = f"{' '.join(dict.fromkeys((str(status), code)))}: {getattr(error, 'strerror', None) or error}"
    if isinstance(error, FileNotFoundError):
        return 0, f"there is no such file, folder or bucket ({error})"
    if isinstance(error, PermissionError):
        return 0, f"permission denied ({error}); check the rights or AWS credentials"
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return 0, f"no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, exceptions.ConnectionError | aiohttp.ClientConnectorError):
        return NO_STORE_PATIENCE_S, f"no object store answers ({text}); check AWS_ENDPOINT_URL and the network"
    if code == "SlowDown" or status in (429, 503):
        return PATIENCE_S, f"the store asks to slow down ({text}); run the same command again later"
    if code in PASSING_CODES or status in (408, 500, 502, 504) or isinstance(error, parsers.ResponseParserError):
        return PATIENCE_S, f"the store failed ({text}); run the same command again later"
    if status is not None:
        return 0, text
    if isinstance(error, aiohttp.ClientPayloadError | exceptions.ResponseStreamingError | CutShortError):
        return PATIENCE_S, f"the answer was cut short ({text}); check the network, then run the same command again"
    if isinstance(error, TimeoutError | exceptions.ReadTimeoutError):
        return PATIENCE_S, f"the answer took too long ({text}); check the network, then run the same command again"
    if isinstance(error, ConnectionError | exceptions.HTTPClientError | aiohttp.ClientError):
        return PATIENCE_S, f"the connection broke ({text}); check the network, then run the same command again"
    return 0, text


def is_refused_precondition(error: Exception) -> bool:
    """Whether a conditional write was refused, because somebody else has written or is just writing the object."""
    status, code = _answer(error)
    return status == 412 or code in ("PreconditionFailed", "ConditionalRequestConflict")


def _answer(error: Exception) -> tuple[int | None, str]:
    """HTTP status and error code of the store's answer, where there was one."""
    for botocore_error in (error, error.__cause__):  # s3fs translates the one, which then is the cause.
        response = getattr(botocore_error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status, str(response.get("Error", {}).get("Code", ""))
    # The clients of gs:// have `code`, of az:// `status_code`, of hf:// `response.status_code`.
    for holder, name in ((error, "code"), (error, "status_code"), (getattr(error, "response", None), "status_code")):
        if isinstance(status := getattr(holder, name, None), int):
            return status, ""
    return None, ""
