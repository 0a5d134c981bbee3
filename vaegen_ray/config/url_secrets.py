"""Secrets in URLs and connection strings: found, and blotted out."""

import re

_USER = re.compile(r"(?<!\baz)(?<!\babfs)(?<!\babfss)(?<!\bhf)://[^/?#\s:\"']+@")
"""A user, or a token in its place. Before `@` an `az://` URL has a container, an `hf://` URL a repository."""
_PASSWORD = re.compile(r"://[^/?#\s:@\"'\[]*:(?!\d{2,5}[^\w@])[^\s\"']*@")
"""Keys of S3 hold slashes, so that only what cannot be a port tells a password."""
_PARAMETER = re.compile(
    r"([?&;](?:[\w.-]*[-_.])?(?:sig|signature|token|key|api_?key|account_?key|sharedaccess\w+|secret|password|credential)=)"
    r"[^&;#\s\"']+",
    re.IGNORECASE,
)
_BLOTTED = "://***@"


def without_url_secrets(text: str) -> str:
    """``text`` with user information of URLs, and what their queries hold to authenticate, as ``***``."""
    return _PARAMETER.sub(r"\1***", _USER.sub(_BLOTTED, _PASSWORD.sub(_BLOTTED, text)))
