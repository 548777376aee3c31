"""The vitrail that is running, as a wheel: however it came here, and without a builder."""

import base64
import hashlib
import io
import zipfile
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from vitrail.modeling import InputError


_PARTS = ("cli", "demo", "inspection", "modeling", "publishing", "training")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP archive knows, so that the bytes do not tell the time
_WHEEL = "Wheel-Version: 1.0\nGenerator: vitrail\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def installed() -> Distribution:
    """What is recorded of this installation of vitrail.

    Raises:
        InputError: it was never installed.
    """
    for found in distributions(name="vitrail"):
        if found.read_text("METADATA"):  # a checkout's own record, an .egg-info, is not complete
            return found
    raise InputError("vitrail is not installed here, so a Space cannot be told what it needs: pip install it first.")


def packed_wheel() -> tuple[str, bytes]:
    """The name and content of a wheel of the sources that this process would import, the same bytes every time.

    Those may be an installation, an editable one or a folder on the path; the metadata are those of `installed`.

    Raises:
        InputError: vitrail was never installed.
    """
    record = installed()
    files = {}
    for part in _PARTS:
        spec = find_spec(f"vitrail.{part}")
        assert spec is not None, part
        assert spec.origin is not None, part
        folder = Path(spec.origin).parent
        for path in folder.rglob("*"):
            if path.is_file() and path.parent.name != "__pycache__":
                files[f"vitrail/{part}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    information = f"vitrail-{record.version}.dist-info"
    described = ["METADATA", "entry_points.txt"]
    described += [f"licenses/{name}" for name in record.metadata.get_all("License-File") or []]
    for name in described:
        text = record.read_text(name)
        assert text is not None, name
        files[f"{information}/{name}"] = text.encode()
    files[f"{information}/WHEEL"] = _WHEEL.encode()
    rows = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in sorted(files.items())]
    files[f"{information}/RECORD"] = "".join([*rows, f"{information}/RECORD,,\n"]).encode()
    return f"vitrail-{record.version}-py3-none-any.whl", _archive(files)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files, key=lambda name: (".dist-info/" in name, name)):  # as the format recommends
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()
