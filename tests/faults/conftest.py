import shutil
from pathlib import Path

import pytest

from small_workspace import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build(workspace := tmp_path_factory.mktemp("built") / "workspace")
    return workspace


@pytest.fixture
def workspace(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "workspace")
