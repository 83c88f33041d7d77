"""The code of README and documentation runs as a reader would type it, and the reference is complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gpntk

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a comment calls slow is left out by default.
CODE = {
    page.name: re.findall(r"(<!-- slow -->\n)?```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES
}
CASES = [pytest.param(page, False, id=page) for page, blocks in CODE.items() if blocks]
CASES += [
    pytest.param(page, True, id=f"{page}, slow", marks=pytest.mark.slow)
    for page, blocks in CODE.items()
    if any(slow for slow, _ in blocks)
]


@pytest.mark.parametrize(("page", "everything"), CASES)
def test_code_runs(page, everything, tmp_path):
    blocks = [code for slow, code in CODE[page] if everything or not slow]
    command = [sys.executable, "-c", "\n".join(blocks)]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    # In a folder of its own, which files go to.
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert finished.returncode == 0, finished.stderr


def test_the_gallery_has_every_example_and_every_figure():
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert set(re.findall(r"examples/(\w+\.py)", gallery)) == examples
    figures = {path.name for path in (ROOT / "docs" / "figures").glob("*.png")}
    assert set(re.findall(r"\(figures/(\w+\.png)\)", gallery)) == figures


def test_the_reference_has_every_public_name_once():
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    # A package alone would show its docstring and none of its names, which come from private modules.
    public = [
        f"gpntk.{package}.{name}"
        for package in gpntk._PUBLIC
        for name in vars(getattr(gpntk, package))
        if not name.startswith("_")
    ]
    assert sorted(listed) == sorted(public)
