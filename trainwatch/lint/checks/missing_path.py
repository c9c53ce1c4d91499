"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainwatch.lint.check import Check, Material
from trainwatch.lint.paths import bases, slipped_file
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

INPUT = re.compile(
    r"(?:^|_)(?:paths?|files?|data|dataset|datasets|train|val|valid|test|config|configs|checkpoint|ckpt|resume|weights"
    r"|pretrained|vocab|tokenizer|base|script|annotations?|ann_file|manifest|root|dir|folder|from|load)(?:_|$)",
    re.IGNORECASE,
)
OUTPUT = re.compile(
    r"(?:^|_)(?:out|output|outputs|save|saved|log|logs|logging|cache|work|tmp|temp|results?|export|dump|write|target"
    r"|tensorboard|wandb|record|run|exp|experiment|profile|trace|offload|download|local|folder)(?:_|$|dir)",
    re.IGNORECASE,
)
FILE = re.compile(
    r"[\w.@=+,-]+(?:/[\w.@=+,-]+)*\.(?:ya?ml|json|jsonl|toml|py|csv|tsv|txt|parquet|arrow|npy|npz|pt|pth|ckpt|bin|h5|hdf5"
    r"|safetensors|model|pkl|mgf|fasta|lmdb|tar|zip|gz|zst|db|vocab|idx|onnx|ipynb|cfg|ini)"
)


class MissingPath(Check):
    """A file that the config names is not there.

    What it sees:
        Files that are read (data, checkpoints, vocabularies, other configs), beside the config, in the working folder
        and up to the project's root. It warns where a file of nearly that name is there, and mentions where only the
        folder is; what a run writes, and paths of another machine, are left alone.

    Why it matters:
        The run ends at its first line of work, after it waited in a queue; or quietly starts from scratch.

    What to do:
        Write the nearest name, or put the file there.

    When it is wrong:
        The file is made by a step before the run.

    References:
        `cfg_multimodal`, which did not exist while `cfg_pretrain` did; the deleted run_production_training.py.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Every text that is a path by its looks, under a name of something that is read."""
        if material.config is None:
            return
        for node in material.nodes:
            text = node.value
            if isinstance(text, str) and FILE.fullmatch(text.removeprefix("./").lstrip("/")) and self._read(node):
                yield from self._find(node, text, material)

    def _read(self, node: Node) -> bool:
        named = [part for part in node.path if not part.isdigit()][-2:]
        return bool(INPUT.search("_".join(named))) and not any(OUTPUT.search(part) for part in named)

    def _find(self, node: Node, text: str, material: Material) -> Iterator[Finding]:
        assert material.config is not None
        places = [Path("/")] if text.startswith("/") else list(bases(Path(material.config.file), material.folder))
        if any((base / text).exists() for base in places):
            return
        parents = [(base / text).parent for base in places if (base / text).parent.is_dir()]
        near = next((name for parent in parents if (name := slipped_file(parent, PurePosixPath(text).name))), "")
        written = any(OUTPUT.search(part) for part in PurePosixPath(text).parts[:-1])
        if not parents or not (near or ("/" in text.removeprefix("./") and not written)):
            return
        right = str(PurePosixPath(text).with_name(near)) if near else ""
        yield self.finding(
            "warning" if right else "info",
            node.dotted,
            node.place,
            f"{node.dotted} is {text}, which is not there{f'; {right} is' if right else ''}.",
            f"Write {right}." if right else f"Put it there, or name one of the files in {parents[0]}.",
            patch={node.dotted: right} if right else {},
            confidence=0.9 if right else 0.7,
        )
