"""Imported first by every stage: what runs is the src/ beside this folder, whichever checkout is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
