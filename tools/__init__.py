"""What developers run: measurements, demo models, simulation, documentation.

Each is ``python -m tools.NAME``, from the repository's root. No job of a user imports any of it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
