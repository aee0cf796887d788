"""The program under which RADICAL-Pilot's components run: theirs, told where files go that else go to the home folder.

python component.py FOLDER ARGUMENTS...     # imports nothing of the engine's: it may not be on their path
"""

from __future__ import annotations

import contextlib
import runpy
import sys
from pathlib import Path

#: What it stands in for, found beside the interpreter.
NAME = "radical-pilot-component"


def main(folder: str) -> None:
    """Become the component that the other arguments name."""
    with contextlib.suppress(ImportError):  # not every installation submits its jobs with it
        from psij import JobExecutorConfig

        JobExecutorConfig.DEFAULT_WORK_DIRECTORY = Path(folder, "psij")
        JobExecutorConfig.DEFAULT = JobExecutorConfig()
    program = str(Path(sys.executable).with_name(NAME))
    sys.argv[:2] = [program]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
