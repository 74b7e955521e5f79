"What no single notebook can show: that the project's files agree with each other."

import configparser
import filecmp
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(o for o in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in o.parts)
SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
CONFIG = SETTINGS["DEFAULT"]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda o: o.stem)


def differing(
    ours: Path,  # a folder as it stands
    fresh: Path,  # the same folder as it should be
    pattern: str,  # which files below them to compare
) -> list[str]:
    "The files that are on one side only or differ, below either folder."
    names = {o.relative_to(d) for d in (ours, fresh) for o in d.rglob(pattern) if ".ipynb_checkpoints" not in o.parts}
    both = [n for n in names if (ours / n).exists() and (fresh / n).exists()]
    same = [n for n in both if filecmp.cmp(ours / n, fresh / n, shallow=False)]
    return sorted(map(str, names - set(same)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A copy of the notebooks, cleaned, with the library exported from nothing but them."
    fresh = tmp_path_factory.mktemp("exported")
    shutil.copy(ROOT / "settings.ini", fresh)
    shutil.copytree(ROOT / "nbs", fresh / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (fresh / "vdmini").mkdir()
    for command in ("nbdev_clean", "nbdev_export"):
        subprocess.run([BIN / command], cwd=fresh, check=True, capture_output=True, timeout=300)
    return fresh


def test_notebooks_are_clean(exported):
    assert not differing(ROOT / "nbs", exported / "nbs", "*.ipynb"), "run nbdev_clean"


def test_library_is_what_the_notebooks_export(exported):
    assert not differing(ROOT / "vdmini", exported / "vdmini", "*.py"), "run nbdev_clean && nbdev_export"


def test_readme_is_what_index_renders():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from readme import render
    finally:
        sys.path.pop(0)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == render(), "run make readme"


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?![a-z]+:|[#/])([^)\s#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and [o for o in links if not (ROOT / o).exists()] == []


@each_notebook
def test_notebook_is_small_and_was_run(path):
    assert path.stat().st_size < 1_000_000
    code = [o for o in json.loads(path.read_text(encoding="utf-8"))["cells"] if o["cell_type"] == "code"]
    kinds = {out["output_type"] for cell in code for out in cell["outputs"]}
    assert "error" not in kinds
    assert kinds or not code, "committed without its outputs"


@pytest.mark.parametrize("script", CONFIG["console_scripts"].split())
def test_console_script_is_there(script):
    module, function = script.split("=")[1].split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("requirement", shlex.split(CONFIG["requirements"] + " " + CONFIG["dev_requirements"]))
def test_requirement_is_pinned_within_its_range(requirement):
    lines = [o for o in (ROOT / "constraints.txt").read_text().splitlines() if not o.startswith("#")]
    pins = dict(o.split("==") for o in lines)
    wanted = Requirement(requirement)
    assert wanted.specifier.contains(pins[wanted.name])


def test_constraints_hold_on_any_machine():
    text = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==[\d.]+$", text, re.M), "torch is pinned without a local mark such as +cpu"
    assert not re.search(r"^(torchvision|nvidia-|vdmini|.* @ )", text, re.M)


def test_licence_is_apache_2():
    assert CONFIG["license"] == "apache2"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


def test_bundled_data_is_small():
    sizes = {o: o.stat().st_size for o in (ROOT / "data_samples").rglob("*") if o.is_file()}
    assert sum(sizes.values()) <= 24_000_000
    assert all(size <= 17_000_000 for size in sizes.values())
