"""Write constraints.txt: the newest versions that fit the ranges in settings.ini, from a fresh environment.

Arguments are pins to keep: python scripts/constraints.py torch==2.13.0
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Every version that `make` installs, so that two people get the same environment; settings.ini has the ranges.
# To take newer versions: make constraints (freezes a fresh environment made from the ranges), then make test.
# Left out: vdmini itself, the +cpu mark of a CPU torch, and the packages of a GPU torch, so that any machine resolves it.
"""
LEFT_OUT = re.compile(r"(#|-e |vdmini\b|nvidia-|cuda-|triton\b|torchvision\b|pip\b)")


def pins(
    freeze: str,  # what `pip freeze --all` prints
) -> list[str]:  # "name==version", no local version marks
    "The lines that hold on any machine."
    return [o.split("+")[0] for o in freeze.splitlines() if not LEFT_OUT.match(o)]


def fresh_freeze(
    *keep: str,  # what shall not move, as "name==version"
) -> str:
    "What a new environment of the package with its development tools holds."
    with tempfile.TemporaryDirectory() as d:
        venv.create(d, with_pip=True)
        pip = [f"{d}/bin/python", "-m", "pip"]
        subprocess.run([*pip, "install", "-U", "setuptools", *keep], check=True)
        subprocess.run([*pip, "install", "--no-build-isolation", *keep, "-e", f"{ROOT}[dev]"], check=True)
        return subprocess.run([*pip, "freeze", "--all"], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins(fresh_freeze(*sys.argv[1:]))) + "\n")
