"""python child.py DATA SCRIPT [ARGUMENT ...]: run a script with DATA's digests pinned."""

import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common.data  # noqa: E402


def run(arguments: list[str]) -> None:
    data, script, *rest = arguments
    common.data.DIGESTS = json.loads((Path(data) / "digests.json").read_text())
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    run(sys.argv[1:])
