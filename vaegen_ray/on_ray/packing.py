"""The code and the job of a submission in one archive: the same bytes for the same content, wherever it is packed."""

import hashlib
import io
import zipfile
from pathlib import Path

import vaegen_ray

JOB_FILE = "job.json"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first moment that an archive can hold; the real one would change its bytes."""


def packed(job: str) -> bytes:
    """A zip archive with this package and the resolved ``job`` (JSON)."""
    folder = Path(vaegen_ray.__file__).parent
    contents = {
        f"vaegen_ray/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in sorted({**contents, JOB_FILE: job.encode()}.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, content)
    return archive.getvalue()


def fingerprint(content: bytes) -> str:
    """Names the content."""
    return hashlib.sha256(content).hexdigest()
