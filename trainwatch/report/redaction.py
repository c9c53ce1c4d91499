"""Takes paths, hosts, users and the environment out of everything that a report says.

What is known of a run (its host, the home directories in its paths, its device, its commit) goes wherever it occurs;
what looks like a path, an address or a URL goes as well. Better a word too much than a name too many.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from trainwatch.diagnosis import Diagnosis
from trainwatch.header import Header, flat
from trainwatch.run import Run
from trainwatch.schema import describe

T = TypeVar("T")

PATH, URL, ADDRESS, HIDDEN = "[path]", "[url]", "[address]", "[hidden]"
PRIVATE: Final = re.compile(
    r"(^|[_.-])(path|paths|dir|directory|folder|file|filename|root|host|hostname|node|nodelist|user|username|login"
    r"|logname|home|email|mail|url|uri|address|addr|endpoint|entity|workspace|account|token|secret|password|key)s?$",
    re.IGNORECASE,
)
"""Settings that say where and who, and not how."""
ENDINGS: Final = (
    "py|pyc|ipynb|pt|pth|ckpt|bin|safetensors|onnx|json|jsonl|yaml|yml|toml|ini|cfg|conf|csv|tsv|txt|log|out|err|npy|npz"
    "|parquet|arrow|h5|hdf5|pkl|pickle|tar|gz|zip|zst|sh|sqlite|db|lmdb|mgf|wandb|swanlab|html|md|so|cu"
)
PART: Final = r"[^\s\"'`<>|:;,()\[\]{}]"
PATTERNS: Final = (
    (re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'`<>]+"), URL),
    (re.compile(r"(?<=[\"'`])(?:~|[A-Za-z]:)?[\\/][^\"'`\n]*(?=[\"'`])"), PATH),  # in quotes, blanks and all
    (re.compile(r"(?<=directory: )(?:'[^'\n]*'|\"[^\"\n]*\")"), PATH),  # as Python words it
    (re.compile(rf"(?<![\w\\])[A-Za-z]:[\\/]+{PART}*"), PATH),
    (re.compile(rf"\\\\[\w.-]+\\{PART}+"), PATH),
    (re.compile(rf"(?<![\w.)\]>|<~/\\])~?/(?=[\w.~@+-]){PART}+"), PATH),
    (re.compile(rf"(?<![\w/])~[\w.-]*/{PART}*"), PATH),
    (re.compile(rf"(?<![\w/.])\.\.?[\\/]{PART}+"), PATH),
    (re.compile(rf"(?<![\w/\\])(?:[\w.~@+=-]+[\\/]+)+[\w.@+=-]*\.(?:{ENDINGS})\b", re.IGNORECASE), PATH),
    (re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"), ADDRESS),
    (re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?![\d.])"), ADDRESS),
    (re.compile(r"(?<![\w.:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}(?![\w:])", re.IGNORECASE), ADDRESS),
    (re.compile(r"\b[A-Z][A-Z0-9_]{2,}=[^\s\"']+"), HIDDEN),  # a variable of the environment
)
NESTED: Final = re.compile(r"(?<![\w/\\])[\w.@+=-]+(?:/[\w.@+=-]+){2,}/?")
HOMES: Final = re.compile(r"[\\/]+(?:home|Users|users)[\\/]+([^\\/\s\"':;,]+)")
OWN: Final = "trainwatch"  # the format whose runs are named by whoever trained them
COMMON: Final = frozenset(
    ["root", "user", "users", "home", "localhost", "none", "null", "true", "false", "cpu", "cuda"]
)
SHORTEST: Final = 3  # letters: what is shorter would be found in every word


@dataclass(frozen=True)
class Redactor:
    """Knows what to hide of some runs; :meth:`tree` hides it in plain data of any shape."""

    secrets: dict[str, str] = field(default_factory=dict)
    channels: frozenset[str] = frozenset()  # they have slashes as well, and are no paths

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Redactor:
        """What these runs tell about where and by whom they were run."""
        found: dict[str, str] = {}
        channels: set[str] = set()
        for run in runs:
            channels.update(run.train.channels, run.eval.channels, run.sample.channels, run.named)
            for one in (run, *run.ranks.values()):
                for said, put in _private(one):
                    own_name = one.format == OWN and said == one.header.run
                    if len(said) >= SHORTEST and said.lower() not in COMMON and not own_name:
                        found.setdefault(said, put)
        return cls(dict(sorted(found.items(), key=lambda item: -len(item[0]))), frozenset(channels))

    def text(self, said: str) -> str:
        """The text without what is to be hidden."""
        said = self._known(said, paths=True)
        for pattern, put in PATTERNS:
            said = pattern.sub(put, said)
        said = self._known(said, paths=False)  # a user in the midst of a path would save what is behind it
        return NESTED.sub(self._nested, said) if "/" in said else said

    def _known(self, said: str, *, paths: bool) -> str:
        for secret, put in self.secrets.items():
            if secret in said and paths == ("/" in secret or "\\" in secret):
                said = re.sub(
                    rf"(?<!\w){re.escape(secret)}(?!\w)" if secret[-1:].isalnum() else re.escape(secret), put, said
                )
        return said

    def _nested(self, found: re.Match[str]) -> str:
        """A path of three parts or more, if it is no channel."""
        said = found[0]
        return said if said in self.channels or describe(said) else PATH

    def tree(self, value: T) -> T:
        """The same data with every text in it redacted; runs are left as they are, for nobody prints them."""
        return self._tree(value)  # type: ignore[no-any-return]

    def _tree(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Run):
            return value
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{item.name: self._tree(getattr(value, item.name)) for item in fields(value)})
        if isinstance(value, Mapping):
            return {self._tree(key): self._setting(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple | frozenset):
            return type(value)(self._tree(item) for item in value)
        return value

    def _setting(self, key: Any, value: Any) -> Any:
        return HIDDEN if isinstance(value, str) and PRIVATE.search(str(key)) else self._tree(value)

    def setting(self, path: str, shown: str) -> str:
        """A setting's value as it is shown; hidden whole where its name says that it is private."""
        return HIDDEN if PRIVATE.search(path) and re.search(r"[A-Za-z]", shown) else self.text(shown)

    def diagnosis(self, said: Diagnosis) -> Diagnosis:
        """The diagnosis without it; its file is no longer named."""
        return replace(self.tree(said), source=PATH, status=said.status)


def _private(run: Run) -> Iterator[tuple[str, str]]:
    """What is to be hidden wherever it occurs, and what is put in its place."""
    source = run.source.absolute()
    yield str(source), PATH
    yield str(run.source), PATH
    yield source.name, PATH
    if source.parent != Path(source.anchor):
        yield str(source.parent), PATH
    if run.format != OWN and run.name in source.parent.parts:
        yield run.name, PATH  # a reader named it after its folder
    yield from _hosts(socket.gethostname())
    for user in HOMES.findall(str(source)):
        yield user, HIDDEN
    for header in run.headers:
        yield from _of_header(header)
    for event in run.events:
        if event.get("kind") == "checkpoint" and isinstance(event.get("path"), str):
            yield event["path"], PATH
        for value in (event.get("traceback"), event.get("message"), event.get("reason"), event.get("exception")):
            for user in HOMES.findall(str(value)) if value else ():
                yield user, HIDDEN


def _of_header(header: Header) -> Iterator[tuple[str, str]]:
    raw = header.raw
    yield from _hosts(raw.get("host"))
    for user in HOMES.findall(str(raw)):
        yield user, HIDDEN
    for name in ("device", "git", "env", "environment", "python", "user", "username"):
        for _, value in flat(raw.get(name)):
            if isinstance(value, str):
                yield value, HIDDEN
                if name == "git" and len(value) > 12:
                    yield from ((value[:length], HIDDEN) for length in (12, 10, 8, 7))
    for path, value in flat({"config": header.config, "source": raw.get("config_source")}):
        if isinstance(value, str) and PRIVATE.search(path) and re.search(r"[\\/.@]|user|host|node", value + path):
            yield value, HIDDEN
    for part in raw["command"] if isinstance(raw.get("command"), list) else ():
        if isinstance(part, str) and re.search(r"[\\/]", part):
            yield part, PATH


def _hosts(host: Any) -> Iterator[tuple[str, str]]:
    if isinstance(host, str) and host:
        yield host, HIDDEN
        yield host.partition(".")[0], HIDDEN
