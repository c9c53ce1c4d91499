"""Each mistake is named, at its line, with what to write instead."""

import pytest

from tests.lint.bad_configs import BAD
from trainwatch.lint import lint_file


@pytest.mark.parametrize(("name", "text", "check", "line", "right"), BAD, ids=[item[0] for item in BAD])
def test_named_with_its_line(name, text, check, line, right, tmp_path, monkeypatch):
    """One alarm, by the right check, where the mistake stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.jsonl").touch()
    (tmp_path / "data/cfg_pretrain.yaml").touch()
    path = tmp_path / name
    path.write_text(text)
    found = [finding for finding in lint_file(path).findings if finding.severity != "info"]
    assert [(item.rule, item.evidence["line"]) for item in found] == [(check, line)]
    assert right in found[0].message + found[0].advice
    assert found[0].evidence["file"] == str(path)
    assert found[0].evidence["column"] >= 1


def test_there_are_enough():
    """What the measure counts."""
    assert len(BAD) >= 60
