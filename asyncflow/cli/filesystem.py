"""Which file system a folder is on, and what follows for workflows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PARALLEL = "shared by all nodes; many small files are slow here: keep those on a node's own disk ($TMPDIR)"
_REMOTE = (
    "shared by all nodes; what one writes others may see seconds later, and locks are unreliable: "
    "keep databases (SQLite) on a node's own disk"
)
_MEMORY = "in memory, of this node only; what is written counts as memory and is gone with the node"
_CONTAINER = "a container's own layer: other nodes do not see it, and it is gone with the container"
_LOCAL = "of this node only: tasks on other nodes do not see these files"

#: Kinds, as /proc/self/mountinfo has them: what they are called, and what follows.
_KNOWN = {
    "nfs": ("NFS", _REMOTE),
    "nfs4": ("NFS", _REMOTE),
    "cifs": ("SMB", _REMOTE),
    "smb3": ("SMB", _REMOTE),
    "afs": ("AFS", _REMOTE),
    "fuse.sshfs": ("sshfs", _REMOTE),
    "lustre": ("Lustre", _PARALLEL),
    "gpfs": ("GPFS", _PARALLEL),
    "beegfs": ("BeeGFS", _PARALLEL),
    "fhgfs": ("BeeGFS", _PARALLEL),
    "ceph": ("CephFS", _PARALLEL),
    "pvfs2": ("OrangeFS", _PARALLEL),
    "panfs": ("PanFS", _PARALLEL),
    "wekafs": ("WekaFS", _PARALLEL),
    "tmpfs": ("tmpfs", _MEMORY),
    "ramfs": ("ramfs", _MEMORY),
    "overlay": ("overlay", _CONTAINER),
}


@dataclass(frozen=True)
class FileSystem:
    """Where a folder lies."""

    folder: str
    #: Where the file system is mounted.
    mount: str
    #: As the system has it: "nfs4", "ext4".
    kind: str
    #: As people call it: "NFS".
    name: str
    #: What follows for a workflow that writes there.
    advice: str


def file_system(folder: Path, mountinfo: str) -> FileSystem:
    """The file system of an absolute folder without links, by the text of /proc/self/mountinfo.

    Raises ValueError where no mount of that text holds the folder.
    """
    found: tuple[PurePosixPath, str] | None = None
    for line in mountinfo.splitlines():
        mount, kind = _mount(line)
        # Of two mounts on the same folder the later one hides the other.
        if folder.is_relative_to(mount) and (found is None or len(mount.parts) >= len(found[0].parts)):
            found = mount, kind
    if found is None:
        raise ValueError(f"no mount holds {folder}")
    name, advice = _KNOWN.get(found[1], (found[1], _LOCAL))
    return FileSystem(str(folder), str(found[0]), found[1], name, advice)


def _mount(line: str) -> tuple[PurePosixPath, str]:
    """Mount point and kind: the fifth field, and the first one behind the lone dash."""
    before, _, after = line.partition(" - ")
    # Spaces and the like are written as octal numbers.
    point = before.split(" ")[4].encode("latin-1", "backslashreplace").decode("unicode_escape")
    return PurePosixPath(point), after.split(" ")[0]
