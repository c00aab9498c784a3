"""The program in README.md runs as it is printed, on a model in the layout of BGE-M3."""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "demo"))

from node import Node  # noqa: E402


def test_the_program_in_the_readme_finds_its_rows(tmp_path, capsys):
    printed = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(printed) == 1
    # The same files with fewer dimensions: a model of random weights.
    shutil.copytree(ROOT / "tests/data/embedding-golden/tiny-bge-m3", tmp_path / "models/BAAI/bge-m3")
    with Node(tmp_path / "data", tmp_path / "models") as node:
        changed = {"http://localhost:19530": node.uri, "dim=1024": "dim=64"}
        program = printed[0]
        for old, new in changed.items():
            assert old in program
            program = program.replace(old, new)
        exec(compile(program, "README.md", "exec"), {})
    answer = capsys.readouterr().out
    assert "The kite hovers over the meadow." in answer
    assert "It rains." in answer
