"""C++ compilers that are there and do not do, each with an empty cache of what torch compiled before."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

AREA = "Compiler"
ROOT = Path(__file__).parents[2]
RESOLVE = """
from resnet_repro.engine import resolve
from resnet_repro.params import Engine
print(resolve(Engine(device="cpu", precision="fp32", threads=1, mode="{mode}")))
"""
NEEDED = "torch.compile needs a C++ compiler and Python's headers (Debian: g++ and python3-dev)"
PASSES = 'for one; do shift; [ "$one" = "$DROP" ] || set -- "$@" "$one"; done; exec "$REAL" "$@"'
"""a compiler that works, but for one argument, which it does not see"""


def without_headers(programs: Path) -> dict[str, str]:
    (programs / "g++").write_text(f"#!/bin/sh\n{PASSES}\n")
    (programs / "g++").chmod(0o755)
    return {"DROP": f"-I{sysconfig.get_paths()['include']}", "REAL": str(shutil.which("g++"))}


def under_another_name(programs: Path) -> dict[str, str]:
    (programs / "c++").symlink_to(str(shutil.which("g++")))
    return {"PATH": str(programs)}


def behind_a_wrapper(programs: Path) -> dict[str, str]:
    return {"CXX": "ccache g++"}


def that_cannot_be_loaded(programs: Path) -> dict[str, str]:
    """What it writes is no library, as on a disk whose files may not be executed."""
    script = 'out=; for one; do [ "$out" = next ] && out=$one && break; [ "$one" = -o ] && out=next; done'
    (programs / "g++").write_text(f'#!/bin/sh\n"$REAL" "$@" || exit\n{script}\ncase $out in *.so) : > "$out";; esac\n')
    (programs / "g++").chmod(0o755)
    return {"REAL": str(shutil.which("g++"))}


@pytest.mark.fault(
    "a C++ compiler is there, but torch cannot use it",
    "a training says why and what to install, and goes on without; asked to compile, it refuses with that reason",
)
@pytest.mark.parametrize(
    ("break_compiler", "reason"),
    [
        (without_headers, "fatal error: Python.h: No such file or directory"),
        (under_another_name, "No working C++ compiler found"),
        (behind_a_wrapper, "No working C++ compiler found"),
        (that_cannot_be_loaded, "ImportError: "),
    ],
)
def test_a_compiler_that_does_not_do(break_compiler, reason: str, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++ here to begin with")
    (programs := tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    environment |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= break_compiler(programs)

    def resolved(mode: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RESOLVE.format(mode=mode)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    auto = resolved("auto")
    assert auto.returncode == 0, auto.stderr
    *_, told, engine = auto.stdout.splitlines()
    assert told.startswith("Training runs without compilation, which is slower: ")
    assert reason in told
    assert NEEDED in told
    assert ", eager, fp32" in engine
    asked = resolved("compiled")
    assert asked.returncode
    message = asked.stderr.splitlines()[-1]
    assert "ParamsError: engine.mode is compiled, and here " in message
    assert reason in message
    assert NEEDED in message
