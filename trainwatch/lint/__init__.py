"""Lint: what is wrong with a config, a launch command or a script, before a GPU hour is spent.

Sources give settings with their places, checks look at them one by one, and the rules that judge a run's header judge
the one that the config stands for. Nothing is imported, constructed or run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from trainwatch.diagnosis import Diagnosis, root_cause
from trainwatch.engine import Settings
from trainwatch.lint import header, recorded
from trainwatch.lint.check import Material, catalogue
from trainwatch.lint.dialect import Dialect, dialects
from trainwatch.lint.horizon import plan
from trainwatch.lint.sources.files import READERS, read_config
from trainwatch.lint.sources.python_file import imports_of, read_schema, read_script
from trainwatch.lint.tree import Config, LintError
from trainwatch.run import Run
from trainwatch.schema import Finding

SOURCES = (*READERS, ".py", ".ipynb")
FOLDERS = (".yaml", ".yml")
"""What is taken from a folder: a folder's JSON is most often data."""


def files(path: Path) -> Iterator[Path]:
    """The configs that a path stands for. Raises LintError for a folder without any."""
    if not path.is_dir():
        yield path
        return
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in FOLDERS and file.is_file())
    if not found:
        raise LintError(f"{path}: holds no {' or '.join(FOLDERS)} file; name a config.")
    yield from found


def lint_file(path: Path, settings: Settings | None = None) -> Diagnosis:
    """Judge a config, a script or a notebook. Raises LintError."""
    if path.suffix.lower() in (".py", ".ipynb"):
        found = list(checked(Material(script=read_script(path))))
        return conclude(str(path), path.suffix[1:], path.name, found)
    findings, notes = [], []
    configs = read_config(path)
    for config in configs:
        findings += [*checked(material(config)), *header.judge(config, settings or Settings())]
        said = plan(config)
        notes += [said.sentence()] if said.computed else []
    return conclude(str(path), configs[0].format, path.name, findings, notes)


def material(config: Config) -> Material:
    """A config with the schema that its comment names, and the tools that it may be for."""
    tools: frozenset[Dialect] = dialects(config)
    if not config.schema:
        return Material(config, tools)
    name, _, kind = config.schema.partition(":")
    places = [base / name for base in (Path(config.file).parent, Path.cwd())]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise LintError(f"{config.file}: names the schema {name}, which is not there; write its path from here.")
    tools |= frozenset[Dialect](["omegaconf"] if "omegaconf" in imports_of(path) else [])
    return Material(config, tools, read_schema(path, kind or "Config"))


def checked(looked_at: Material) -> Iterator[Finding]:
    """What every check says."""
    for check in catalogue().values():
        yield from check().look(looked_at)


def conclude(source: str, form: str, name: str, findings: Iterable[Finding], notes: Iterable[str] = ()) -> Diagnosis:
    """The findings in the order of the file, as a diagnosis that every face can print."""
    ordered = sorted(findings, key=lambda item: (str(item.evidence["file"]), item.evidence["line"], -item.rank))
    root, _ = root_cause(ordered)
    return Diagnosis(
        source=source,
        format=form,
        run=name,
        status="never-started",
        first_step=None,
        last_step=None,
        records=0,
        root_cause=root,
        findings=tuple(ordered),
        explained=frozenset(),
        withheld={},
        failed={},
        notes=tuple(notes),
        prescription={path: value for item in ordered if item.severity != "info" for path, value in item.patch.items()},
    )


def lint_run(run: Run, settings: Settings | None = None) -> Diagnosis:
    """Judge a recorded run's own config and header, before its first step."""
    chosen = settings or Settings()
    config = recorded.config_of(run)
    tree = Material(config, frozenset[Dialect](["omegaconf"]))
    findings = [*recorded.judge(run, chosen), *checked(tree)]
    return conclude(str(run.source), run.format, run.name, findings)
