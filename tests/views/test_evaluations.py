"""Which way a figure of merit is better, by its name."""

import pytest

from trainwatch.views.evaluations import direction


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("metric/accuracy", 1), ("metric/top5", 1), ("metric/mAP50", 1), ("metric/bleu", 1), ("metric/val_f1", 1)),
        *(("loss", -1), ("loss/mass", -1), ("metric/perplexity", -1), ("metric/err_top1", -1), ("metric/wer", -1)),
        *(("metric/pck", 1), ("metric/pck_05", 1), ("metric/oks", 1)),
        *(("metric/reward", 0), ("metric/precision", 0), ("metric/steps", 0)),
        *(("metric/PCK", 1), ("metric/pck_05", 1), ("metric/oks", 1), ("metric/packets", 0)),
    ],
)
def test_direction(name, way):
    """What counts errors of the best answer is still an error."""
    assert direction(name) == way
