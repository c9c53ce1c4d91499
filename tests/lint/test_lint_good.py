"""Healthy configs of many conventions: not one warning among them."""

import pytest

from tests.lint.good_configs import GOOD
from trainwatch.lint import lint_file


@pytest.mark.parametrize("name", GOOD)
def test_no_warning(name, tmp_path):
    """Infos are allowed; an alarm is not."""
    (tmp_path / "Base-RCNN-FPN.yaml").touch()
    path = tmp_path / "configs" / name
    path.parent.mkdir()
    path.write_text(GOOD[name])
    said = lint_file(path)
    assert [(f.rule, f.subject, f.message) for f in said.findings if f.severity != "info"] == []


def test_there_are_enough():
    """What the measure counts."""
    assert len(GOOD) >= 40
