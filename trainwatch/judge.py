"""What a user names -> what is judged: paths become runs, settings become rules, and no failure goes unsaid."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainwatch.diagnosis import Diagnosis, diagnose
from trainwatch.engine import Settings, SettingsError
from trainwatch.lint.check import catalogue
from trainwatch.readers import HEAD, ReadError, find, leader, read_all, stands_for_run
from trainwatch.run import Run


@dataclass(frozen=True)
class Judged:
    """A run and what the rules say of it."""

    run: Run
    diagnosis: Diagnosis


def settings(assignments: Iterable[str] = (), folder: Path | None = None) -> Settings:
    """The rules' settings: ``[tool.trainwatch]`` of the nearest pyproject.toml, then ``rule.field=value`` on top.

    Raises SettingsError, its text one sentence.
    """
    off, thresholds = _from_project(folder or Path.cwd())
    for assignment in assignments:
        found = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", assignment.strip())
        if not found:
            raise SettingsError(f"--set {assignment!r} has the wrong form; write rule.field=value.")
        rule, field, value = found.groups()
        thresholds.setdefault(rule, {})[field] = _value(value)
    checks = frozenset(off) & catalogue().keys() if off else frozenset[str]()
    chosen = Settings(frozenset(off) - checks, thresholds, checks)
    chosen.rules()  # a rule that does not exist is said before anything is read
    return chosen


def _from_project(folder: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    path = next((place / "pyproject.toml" for place in (folder, *folder.parents) if _is_project(place)), None)
    if path is None:
        return [], {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("trainwatch", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as TOML ({error}); mend it.") from None
    off = table.get("off", [])
    if not isinstance(off, list) or not all(isinstance(name, str) for name in off):
        raise SettingsError(f"{path}: [tool.trainwatch] off must be a list of rule names, not {off!r}.")
    rules = {name: value for name, value in table.items() if name != "off"}
    for name, value in rules.items():
        if not isinstance(value, Mapping):
            raise SettingsError(f"{path}: [tool.trainwatch] {name} must be a table {name}.field = value.")
    return off, {name: dict(value) for name, value in rules.items()}


def _is_project(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def run_files(paths: Iterable[Path]) -> Iterator[Path | ReadError]:
    """The files that ``paths`` stand for, each once: a folder's runs, a rank's file as part of rank 0's, and a list of
    checkpoints as part of its log.
    """
    seen: set[Path] = set()
    for path in paths:
        for item in _files(path):
            if isinstance(item, ReadError):
                yield item
            elif item.absolute() not in seen:
                seen.add(item.absolute())
                yield item


def _files(path: Path) -> Iterator[Path | ReadError]:
    if not path.is_dir():
        yield leader(path)
        return
    empty = True
    for file in find(path):
        empty = False
        yield file
    if empty:
        yield ReadError(f"{path}: holds no run file; name the folder that trainwatch.Recorder wrote into.")


def judge(path: Path, chosen: Settings) -> list[Judged] | ReadError:
    """Every run in a file with its diagnosis, or why there is none: one file never takes the others down."""
    try:
        return [Judged(run, diagnose(run, chosen)) for run in read_all(path)]
    except ReadError as error:
        return error
    except Exception as error:
        return ReadError(f"{path}: trainwatch broke on it ({type(error).__name__}: {error}); please report this.")


def judge_all(files: Iterable[Path | ReadError], chosen: Settings) -> tuple[list[Judged], list[str]]:
    """The runs in ``files`` with their diagnoses, and one sentence on each file that could not be judged."""
    judged: list[Judged] = []
    unread: list[str] = []
    for file in files:
        found = file if isinstance(file, ReadError) else judge(file, chosen)
        if isinstance(found, ReadError):
            unread.append(str(found))
        else:
            judged += found
    return judged, unread


NUMBERED = re.compile(r"[-_.]?\d+$")
SIBLINGS = 24  # run files of one name that are looked at for a healthy one, the newest first


def last_healthy(item: Judged, chosen: Settings) -> Judged | None:
    """The newest other run of the same name in the run's folder that finished without a warning; None if none did."""
    own = item.run.source
    files = [path for path in own.parent.iterdir() if _may_be_called(path, item.run)] if own.parent.is_dir() else []
    for path in sorted(files, key=_touched, reverse=True)[:SIBLINGS]:
        if path.absolute() == own.absolute() or not stands_for_run(path):
            continue
        found = judge(path, chosen)
        for other in reversed(found) if isinstance(found, list) else ():
            if _base(other.run.name) == _base(item.run.name) and _healthy(other):
                return other
    return None


def _may_be_called(path: Path, run: Run) -> bool:
    """Whether a file may hold a run of that name, without reading more of it than its first line."""
    if path.suffix != run.source.suffix or not path.is_file():
        return False
    if _base(path.stem) in (_base(run.source.stem), _base(run.name)):
        return True
    try:
        with path.open("rb") as file:
            return json.dumps(_base(run.name))[1:-1].encode() in file.readline(HEAD)
    except OSError:
        return False


def _healthy(item: Judged) -> bool:
    grave = any(finding.rank for finding in item.diagnosis.findings) or item.diagnosis.failed
    return not grave and item.diagnosis.status == "finished" and item.run.train.size > 0


def _base(name: str) -> str:
    """``exp1`` of ``exp1-2``: a second run of a name is numbered by the recorder."""
    return NUMBERED.sub("", name) or name


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
