"""Which tool reads a config, told by what only its configs have: one takes for a number what another takes for text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from trainwatch.lint.names import TRAINING_ARGUMENTS, words
from trainwatch.lint.paths import asks_for, project
from trainwatch.lint.tree import Config, Node

Dialect = Literal["omegaconf", "lightning", "yacs", "axolotl", "huggingface", "deepspeed", "speechbrain"]
UNMISTAKABLE = words(
    "num_train_epochs per_device_train_batch_size per_device_eval_batch_size lr_scheduler_type output_dir do_train "
    "gradient_accumulation_steps logging_steps save_strategy eval_strategy evaluation_strategy report_to"
)
YACS = 0.8  # of the names in capitals
FLOATING: frozenset[Dialect] = frozenset(["omegaconf", "lightning", "yacs", "axolotl", "speechbrain"])
"""Readers to whom `1e-4` is a number: they bring a resolver of their own, or convert by type."""


def dialects(config: Config) -> frozenset[Dialect]:
    """The tools that a config may be for; none where nothing tells."""
    nodes = list(config.root.walk())
    names = {node.name for node in nodes if not node.name.isdigit()}
    top = set(config.root.children)
    capitals = [name for name in names if name.isupper()]
    found: dict[Dialect, bool] = {
        "omegaconf": _omegaconf(config, nodes, names),
        "lightning": bool(names & {"class_path", "seed_everything"}) or {"trainer", "ckpt_path"} <= top,
        "yacs": "_BASE_" in top or (len(capitals) > 2 and len(capitals) >= YACS * len(names)),
        "axolotl": "base_model" in top and bool(top & {"adapter", "sequence_len", "micro_batch_size", "datasets"}),
        "huggingface": any(training_arguments(node) for node in nodes),
        "speechbrain": {"epoch_counter", "checkpointer"} <= top,
        "deepspeed": bool(names & {"zero_optimization", "train_micro_batch_size_per_gpu"}),
    }
    return frozenset(name for name, so in found.items() if so)


def training_arguments(node: Node) -> bool:
    """Whether a mapping is Hugging Face's TrainingArguments."""
    return len(UNMISTAKABLE & node.children.keys()) >= 2 and len(TRAINING_ARGUMENTS & node.children.keys()) >= 3


def _omegaconf(config: Config, nodes: list[Node], names: set[str]) -> bool:
    defaults = config.root.children.get("defaults")
    if (defaults and defaults.items) or names & {"_target_", "_component_", "_name", "hydra"} or config.package:
        return True
    if {"finetuning_type", "model_name_or_path"} <= names:  # LLaMA-Factory loads with OmegaConf
        return True
    if any(isinstance(node.value, str) and "${" in node.value for node in nodes):
        return True
    parents = Path(config.file).parent.absolute()
    return any((parents / ".." / step / "hydra").is_dir() for step in (".", "..")) and config.format == "yaml"


CONVERTERS = re.compile(
    r"\b(omegaconf|hydra[-_]core|jsonargparse|hyperpyyaml|ruamel[._]yaml|yacs|lightning\[)", re.IGNORECASE
)


def converter(config: Config) -> str:
    """A reader that takes `1e-4` for a number and that the config's project asks for; empty where it asks for none."""
    root = project(Path(config.file))
    found = CONVERTERS.search(asks_for(root)) if root else None
    return found.group(1).lower() if found else ""
