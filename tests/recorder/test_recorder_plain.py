"""Anything becomes JSON, and secrets stay where they are."""

import argparse
import dataclasses
import enum
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import trainwatch
from trainwatch.recorder import header
from trainwatch.recorder.plain import REDACTED, command, plain

SECRET = ["token", "hf_token", "api_key", "apiKey", "db.password", "DB_PASSWORD", "client_secret", "credentials"]


@pytest.mark.parametrize("key", SECRET)
def test_secret_keys(key):
    assert plain({key: "abc", "x": [{key: {"inner": "abc"}}]}) == {key: REDACTED, "x": [{key: REDACTED}]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_tokens", 512),
        ("eos_token", "</s>"),
        ("tokenizer", "bpe"),
        ("tokens", ["a"]),
        ("token", None),
        ("key", "k"),
    ],
)
def test_keys_that_only_look_secret(key, value):
    assert plain({key: value}) == {key: value}


def test_command_lines_and_addresses():
    given = ["train.py", "--token=abc", "--api-key", "abc", "+db.password=abc", "--lr", "3", "--dsn=pg://me:abc@host/x"]
    assert command(given) == [
        "train.py",
        f"--token={REDACTED}",
        "--api-key",
        REDACTED,
        f"+db.password={REDACTED}",
        "--lr",
        "3",
        f"--dsn=pg://me:{REDACTED}@host/x",
    ]
    assert plain(["https://h/x?token=abc&a=1", "hf_" + "a" * 34]) == [f"https://h/x?token={REDACTED}&a=1", REDACTED]


@dataclasses.dataclass
class Inner:
    rate: float = 1e-3
    where: pathlib.Path = pathlib.Path("a/b")


@dataclasses.dataclass
class Config:
    inner: Inner = dataclasses.field(default_factory=Inner)
    password: str = "abc"


class Colour(enum.Enum):
    RED = "red"


def test_forms_of_a_config():
    expected = {"inner": {"rate": 1e-3, "where": "a/b"}, "password": REDACTED}
    assert plain(Config()) == expected
    assert plain(OmegaConf.structured(Config)) == expected
    assert plain(OmegaConf.create({"a": 1, "b": "${a}", "c": "${missing}"}))["a"] == 1
    assert plain(argparse.Namespace(inner=Inner(), password="abc")) == expected
    odd = plain({"c": Colour.RED, "n": np.float32(0.5), "nan": float("nan"), "f": plain, "big": 2**70, 3: {1, 2}})
    assert odd == {"c": "red", "n": 0.5, "nan": "nan", "f": "plain", "big": str(2**70), "3": [1, 2]}


def test_what_contains_itself():
    loop: dict = {}
    loop["loop"] = loop
    json.dumps(plain(loop))


@settings(deadline=None, max_examples=50)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    )
)
def test_it_is_always_strict_json(value):
    json.dumps(plain(value), allow_nan=False)


def test_header_from_a_config_with_secrets(tmp_path, records):
    with trainwatch.Recorder(
        tmp_path / "run.jsonl", config=Config(), classes={"A": 3}, dtypes={"declared": "float16"}
    ) as watch:
        pass
    head = records(watch.path)[0]
    assert head["config"]["password"] == REDACTED
    assert head["classes"] == {"A": 3}
    assert head["packages"]["numpy"] == np.__version__


class Stage:
    def __init__(self, start, weights):
        self.start, self.weights = start, weights


class Curriculum:
    name = "object"
    stages = (Stage(0, {"a": 1}), Stage(5, {"a": 2}))


@pytest.mark.parametrize(
    "curriculum",
    [
        Curriculum,
        {"stages": [{"start": 0, "weights": {"a": 1}}, {"start": 5, "weights": {"a": 2}}]},
        [{"weights": {"a": 1}}, {"start": 5, "weights": {"a": 2}}],
    ],
)
def test_forms_of_a_curriculum(curriculum):
    form = header.curriculum_form("curriculum", curriculum, 9)
    assert [(stage["start"], stage["end"], stage["weights"]) for stage in form["stages"]] == [
        (0, 5, {"a": 1}),
        (5, 9, {"a": 2}),
    ]


def test_weights_alone_are_a_curriculum_of_one_stage():
    form = header.curriculum_form("curriculum", {"a": 1.0, "b": 0}, None)
    assert form == {"stages": [{"start": 0, "weights": {"a": 1.0, "b": 0}}]}
