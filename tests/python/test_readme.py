"""The program in README.md runs as it is printed, on a model in the layout of BGE-M3."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_program_in_the_readme_finds_its_rows(node, client, capsys):
    printed = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(printed) == 1
    # The model of this name under test has random weights, and fewer dimensions.
    changed = {"http://localhost:19530": node.uri, "dim=1024": "dim=64"}
    program = printed[0]
    for old, new in changed.items():
        assert old in program
        program = program.replace(old, new)
    try:
        exec(compile(program, "README.md", "exec"), {})
    finally:
        client.drop_collection("notes")
    answer = capsys.readouterr().out
    assert "The kite hovers over the meadow." in answer
    assert "It rains." in answer
