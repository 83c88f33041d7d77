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
CODE = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [name for name, blocks in CODE.items() if blocks])
def test_code_runs(page, tmp_path):
    command = [sys.executable, "-c", "\n".join(CODE[page])]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    # In a folder of its own, which files go to.
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert finished.returncode == 0, finished.stderr


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
