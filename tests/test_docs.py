"""The code in the README and in the documentation runs, in order, as a reader would type it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [name for name, blocks in CODE.items() if blocks])
def test_code_runs(page):
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(CODE[page])], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
