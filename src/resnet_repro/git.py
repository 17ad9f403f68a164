"""Git, where there may be none: no repository, as in an unpacked archive, or no such program."""

import subprocess
from pathlib import Path


def git(root: Path, *arguments: str) -> bytes | None:
    """What a git command says in `root`; None where it fails or cannot be run."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except OSError:
        return None
    return None if done.returncode else done.stdout
