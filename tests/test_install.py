"A wheel holds all that a checkout has."

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
ASK = """
import sys; sys.path.insert(0, sys.argv[1])
import vdmini.core
print(vdmini.core.__file__, vdmini.core.samples(), vdmini.core.samples("probe", "deep", "file.txt").read_text(), sep="\\n")
"""


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    "A folder with the wheel of a copy of this checkout installed into it (one bundled file added as a probe)."
    copy, wheels, target = map(tmp_path_factory.mktemp, ("copy", "wheels", "target"))
    for name in "setup.py settings.ini pyproject.toml MANIFEST.in README.md LICENSE".split():
        shutil.copy(ROOT / name, copy)
    for name in "vdmini data_samples".split():
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    probe = copy / "data_samples/probe/deep/file.txt"
    probe.parent.mkdir(parents=True)
    probe.write_text("found")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, copy], check=True, timeout=300)
    subprocess.run([*PIP, "install", "--no-deps", "--target", target, *wheels.glob("*.whl")], check=True, timeout=300)
    return target


@pytest.mark.slow
def test_bundled_files_are_found_in_an_installed_wheel(target, tmp_path):
    done = subprocess.run([sys.executable, "-I", "-c", ASK, target], cwd=tmp_path, check=True, capture_output=True, text=True)
    module, samples, probe = done.stdout.splitlines()
    assert Path(module) == target / "vdmini/core.py"
    assert Path(samples) == target / "vdmini/data_samples"
    assert probe == "found"


@pytest.mark.slow
def test_every_bundled_file_is_in_the_wheel(target):
    def below(d):
        return {o.relative_to(d): o.stat().st_size for o in d.rglob("*") if o.is_file() and "__pycache__" not in o.parts}

    missing = below(ROOT / "data_samples").items() - below(target / "vdmini/data_samples").items()
    assert not missing
    for folder in ("static", "configs"):
        ours = below(ROOT / "vdmini" / folder)
        assert ours and not ours.items() - below(target / "vdmini" / folder).items()
