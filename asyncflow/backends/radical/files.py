"""The folder in which all of a pilot's files stand; its owner's alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed.security import Security

#: Options of Security, and the file of each.
_CERTIFICATES = {
    "tls_ca_file": "ca.pem",
    "tls_client_cert": "certificate.pem",
    "tls_client_key": "key.pem",
    "tls_scheduler_cert": "certificate.pem",
    "tls_scheduler_key": "key.pem",
    "tls_worker_cert": "certificate.pem",
    "tls_worker_key": "key.pem",
}


class Files:
    """What stands where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: What it was started for.
        self.order = folder / "order.json"
        #: What the process that holds it prints.
        self.log = folder / "log"
        self._owner = folder / "owner.json"
        self._address = folder / "address"
        self._closed = folder / "closed"

    @staticmethod
    def new(root: Path) -> Path:
        """The path of a folder below `root` that is not there yet."""
        return root / f"asyncflow.{uuid.uuid4().hex[:12]}"

    def make(self, order: str, *, stays: bool) -> None:
        """Make the folder; `stays` where the pilot outlives the process that starts it."""
        self.folder.mkdir(parents=True, mode=0o700)
        self.order.write_text(order)
        if stays:
            (self.folder / "stays").touch()
        self._write_certificates()

    @property
    def session(self) -> str:
        """The name of RADICAL-Pilot's session; whatever belongs to it carries that name, and nothing else does."""
        return self.folder.name

    @property
    def stays(self) -> bool:
        """Whether the pilot outlives the process that started it."""
        return (self.folder / "stays").exists()

    # --- who holds it ------------------------------------------------------------------------------------------------

    def note_owner(self, pid: int) -> None:
        """Process `pid` of this host holds the pilot from now on."""
        self._owner.write_text(json.dumps({"pid": pid, "host": socket.gethostname(), "began": began(pid)}))

    def owner(self) -> Mapping[str, Any] | None:
        """Who holds it: `pid`, `host`, and when the process `began`; None where nobody has."""
        try:
            found: Mapping[str, Any] = json.loads(self._owner.read_text())
        except (OSError, ValueError):
            return None
        return found

    def note_closed(self) -> None:
        """Nothing is left of it but its files."""
        with contextlib.suppress(FileNotFoundError):  # nor these
            self._closed.touch()

    @property
    def closed(self) -> bool:
        """Whether nothing is left of it but its files."""
        return self._closed.exists()

    def remove(self) -> None:
        """Nothing of it is of use any more."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- how to reach it ---------------------------------------------------------------------------------------------

    def note_address(self, address: str) -> None:
        """Under which it serves engines."""
        self._address.write_text(address)

    def address(self) -> str | None:
        """Under which it serves engines; None where it does not yet."""
        try:
            return self._address.read_text()
        except OSError:
            return None

    def _write_certificates(self) -> None:
        """Made for the occasion: nothing else has them."""
        made: Any = Security.temporary()
        for option, name in _CERTIFICATES.items():
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(getattr(made, option))

    def security(self) -> Security:
        """With which all its connections are made."""
        paths = {option: str(self.folder / name) for option, name in _CERTIFICATES.items()}
        return Security(**paths, require_encryption=True)


def began(pid: int) -> str | None:
    """When a process of this host began, to tell it from a later one with its id; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
