"""precision-mismatch: declared against observed; autocast over float32 weights is no mismatch."""

import numpy as np
import pytest

RULE = "precision-mismatch"


@pytest.mark.parametrize(
    "header",
    [
        {"dtypes": {"declared": "bfloat16", "observed": "float16"}},
        {"dtypes": {"declared": "float32", "observed": "bfloat16"}},
        {"dtypes": {"declared": "float64", "observed": "float32"}},
        {"dtypes": {"declared": "float16"}, "config": {"trainer": {"precision": "bf16-mixed"}}},
        {"dtypes": {"observed": "float16"}, "config": {"bf16": True, "fp16": False}},
    ],
)
def test_another_precision_than_declared(make_run, judge, header):
    (finding,) = judge(make_run({"loss": np.ones(5)}, header=header), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "run", 0)


@pytest.mark.parametrize(
    "header",
    [
        {"dtypes": {"declared": "bfloat16", "observed": "float32"}},
        {"dtypes": {"observed": "float32"}, "config": {"precision": "16-mixed"}},
        {"dtypes": {"declared": "float32", "observed": "bfloat16, float32"}},  # a frozen trunk in half precision
        {"dtypes": {"declared": "bfloat16", "observed": "bfloat16"}, "config": {"inference": {"precision": "fp16"}}},
        {"dtypes": {"observed": "bfloat16"}, "config": {"mixed_precision": "no"}},
        {"dtypes": {"observed": "float32"}, "config": {"precision": "auto", "metrics": {"precision": 0.5}}},
        {"dtypes": {"masses": {"declared": "float32", "observed": "float64"}}},
    ],
)
def test_healthy_declarations(make_run, judge, header):
    assert judge(make_run({"loss": np.ones(5)}, header=header), RULE) == []


def test_a_scaler_where_none_is_needed(make_run, judge):
    scale = np.where(np.arange(60) < 10, np.nan, 65536.0)
    run = make_run({"amp/scale": scale}, header={"config": {"optimizer": {}, "precision": "bf16"}})
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step, finding.evidence["scale"]) == ("warning", 11, 65536.0)
    for header in ({"dtypes": {"declared": "float16"}}, {"config": {"precision": "fp16"}}, {}):
        assert judge(make_run({"amp/scale": scale}, header=header), RULE) == []
    off = make_run({"amp/scale": np.ones(60)}, header={"config": {"precision": "bf16"}})
    assert judge(off, RULE) == []


def test_a_tensor_of_its_own(make_run, judge):
    told = {"declared": "bfloat16", "observed": "bfloat16", "masses": {"declared": "float64", "observed": "bfloat16"}}
    (finding,) = judge(make_run({"loss": np.ones(5)}, header={"dtypes": told}), RULE)
    assert (finding.subject, finding.evidence) == (*("module:masses", {"declared": "float64", "observed": "bfloat16"}),)
