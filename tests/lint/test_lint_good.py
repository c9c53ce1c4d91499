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


def test_a_reader_that_converts_is_taken_from_the_requirements(tmp_path):
    """Many projects read plain YAML with OmegaConf, to which 1e-4 is a number: it is only mentioned there."""
    path = tmp_path / "conf/x.yaml"
    path.parent.mkdir()
    path.write_text("lr: 1e-4\n")
    (tmp_path / "setup.py").touch()
    assert lint_file(path).worst == "warning"
    other = tmp_path / "other"
    other.mkdir()
    (other / "setup.py").touch()
    (other / "requirements.txt").write_text("numpy\nomegaconf>=2.1\n")
    (other / "x.yaml").write_text("lr: 1e-4\n")
    assert lint_file(other / "x.yaml").worst == "info"


@pytest.mark.parametrize(
    "text",
    [
        *("pretrainer: x", "optimizers: []", "evaluator: x", "schedules: {}", "momenta: 1", "patch_size: 3"),
        *("optimisation: {}", "val_batch_size: 3", "weight_decays: 1", "checkpoints: x", "min_epochs: 2"),
        *("tokenizers: x", "trained: true"),
    ],
)
def test_another_word_is_no_slip(text, tmp_path):
    """Endings, plurals, British spellings and other words of the trade."""
    (tmp_path / "x.yaml").write_text(text + "\n")
    assert lint_file(tmp_path / "x.yaml").worst is None


def test_there_are_enough():
    """What the measure counts."""
    assert len(GOOD) >= 40
