"""Places are true, and no file takes the tool down: hostile ones get a sentence."""

import json

import pytest

from trainwatch.lint import lint_file
from trainwatch.lint.sources.files import LARGEST, read_config
from trainwatch.lint.sources.python_file import read_schema, read_script
from trainwatch.lint.tree import LintError

SAME = {
    "a.yaml": "train:\n  lr: 0.1\n  layers: [1, 2]\n",
    "a.json": '{"train": {\n  "lr": 0.1,\n  "layers": [1, 2]}}',
    "a.toml": "[train]\nlr = 0.1\nlayers = [1, 2]\n",
}


@pytest.mark.parametrize("name", SAME)
def test_one_tree_whatever_it_is_written_in(name, tmp_path):
    """Values and lines."""
    (tmp_path / name).write_text(SAME[name])
    [config] = read_config(tmp_path / name)
    assert config.root.plain() == {"train": {"lr": 0.1, "layers": [1, 2]}}
    assert config.root.at(("train", "lr")).place.line == 2
    assert config.root.at(("train", "layers")).key.line == 3


HOSTILE = {
    "bomb.yaml": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]\n" for i in range(9)),
    "itself.yaml": "a: &a\n  b: *a\n",
    "deep.yaml": "[" * 5000 + "]" * 5000,
    "deep.json": "[" * 100_000 + "]" * 100_000,
    "tabs.yaml": "a:\n\tb: 1\n",
    "torn.yaml": "a: [1, 2\nb: 3\n",
    "torn.json": '{"a": 1,\n "b"',
    "torn.toml": "[a\n",
    "torn.py": "def f(:\n",
    "torn.ipynb": '{"cells": 3}',
    "deep.py": "x = " + "(" * 3000 + ")" * 3000,
    "empty.yaml": "",
    "text.yaml": "just words\n",
    "nul.yaml": "a: \0\n",
    "merge.yaml": "a: &a\n  <<: *a\n  b: 1\n",
    "name.xyz": "a: 1\n",
    "digits.json": '{"a": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gets_a_sentence(name, tmp_path):
    """It names the file and ends with a full stop; no traceback, no endless work."""
    (tmp_path / name).write_text(HOSTILE[name])
    with pytest.raises(LintError) as error:
        lint_file(tmp_path / name)
    assert name in str(error.value)
    assert str(error.value).endswith(".")


def test_more_hostile_files(tmp_path):
    """Bytes that are no text, too many of them, a folder, nothing."""
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.yaml").write_text("a: 1\n" * LARGEST)
    (tmp_path / "folder.yaml").mkdir()
    for name in ("bytes.yaml", "large.yaml", "folder.yaml", "nothing.yaml"):
        with pytest.raises(LintError, match=name):
            lint_file(tmp_path / name)


def test_unsafe_tags_do_nothing(tmp_path):
    """They are text: nothing is constructed."""
    path = tmp_path / "x.yaml"
    path.write_text(
        f"a: !!python/object/apply:os.system ['touch {tmp_path}/gone']\nb: !!python/name:os.system\nc: !x 1\n"
    )
    assert lint_file(path).findings == ()
    assert not (tmp_path / "gone").exists()


def test_a_script_is_not_run(tmp_path):
    """Read with ast."""
    path = tmp_path / "x.py"
    path.write_text(f"open({str(tmp_path / 'gone')!r}, 'w')\nlr = 3\n")
    assert [item.name for item in read_script(path).constants] == ["lr"]
    assert not (tmp_path / "gone").exists()


def test_a_notebook_is_read_as_it_is(tmp_path):
    """Cells count on, magics are passed over."""
    cells = [
        {"cell_type": "markdown", "source": ["# words"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!ls\n", "lr = 1e-4"]},
        {"cell_type": "code", "source": ["from c import DEFAULT_CURRICULUM"]},
    ]
    (tmp_path / "x.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    script = read_script(tmp_path / "x.ipynb")
    assert script.constants[0].place.line == 3
    assert script.names["DEFAULT_CURRICULUM"].line == 4


SCHEMA = """
from dataclasses import dataclass, field
from omegaconf import OmegaConf
@dataclass
class Optim:
    lr: float = 1e-3
    steps: int = 3
@dataclass
class Config:
    name: str = ""
    lengths: list[int] = field(default_factory=list)
    amp: bool = False
    optim: Optim = field(default_factory=Optim)
"""


def test_a_comment_names_the_schema(tmp_path):
    """Unknown names and wrong types by the dataclasses, which are read and never imported."""
    (tmp_path / "schema.py").write_text(SCHEMA)
    path = tmp_path / "x.yaml"
    head = "# trainwatch: schema=schema.py:Config\n"
    assert read_schema(tmp_path / "schema.py", "Config")["optim.lr"] == "float"
    path.write_text(head + "name: a\nlengths: [1]\namp: true\noptim: {lr: 1e-4, steps: 4}\n")
    assert lint_file(path).findings == ()
    path.write_text(head + "nam: a\nlengths: 1\namp: maybe\noptim: {lr: fast, stps: 4, steps: 1.5}\n")
    found = [(item.rule, item.subject, item.evidence["line"]) for item in lint_file(path).findings]
    assert sorted(found) == [
        ("unknown-key", "config:nam", 2),
        ("unknown-key", "config:optim.stps", 5),
        ("wrong-shape", "config:amp", 4),
        ("wrong-shape", "config:lengths", 3),
        ("wrong-shape", "config:optim.lr", 5),
        ("wrong-shape", "config:optim.steps", 5),
    ]


def test_a_schema_that_is_not_there(tmp_path):
    """It is said, not passed over."""
    path = tmp_path / "x.yaml"
    path.write_text("# trainwatch: schema=gone.py:Config\na: 1\n")
    with pytest.raises(LintError, match=r"gone\.py"):
        lint_file(path)
