"""Lint: what is wrong with a config, a launch command or a script, before a GPU hour is spent.

Sources give settings with their places, checks look at them one by one, and the rules that judge a run's header judge
the one that the config stands for. Nothing is imported, constructed or run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trainwatch.diagnosis import Diagnosis, root_cause
from trainwatch.engine import Settings
from trainwatch.lint import header, recorded
from trainwatch.lint.check import Material, catalogue
from trainwatch.lint.dialect import Dialect, dialects
from trainwatch.lint.horizon import plan
from trainwatch.lint.sources.command import Command, hydra_parser, read_command
from trainwatch.lint.sources.files import READERS, read_config
from trainwatch.lint.sources.hydra_tree import HydraTree, compose
from trainwatch.lint.sources.python_file import Script, imports_of, read_schema, read_script
from trainwatch.lint.sources.yaml_file import value_of
from trainwatch.lint.tree import Config, LintError, Node, Place
from trainwatch.prescription import of_findings
from trainwatch.run import Run
from trainwatch.schema import Finding

SCRIPTS = (".py", ".ipynb")
SOURCES = (*READERS, *SCRIPTS)
FOLDERS = (".yaml", ".yml")
"""What is taken from a folder: a folder's JSON is most often data."""


def files(path: Path) -> Iterator[Path]:
    """The configs that a path stands for. Raises LintError for a folder without any."""
    if not path.is_dir():
        yield path
        return
    found = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in FOLDERS and not _hidden(file.relative_to(path)) and _says(file)
    )
    if not found:
        raise LintError(f"{path}: holds no {' or '.join(FOLDERS)} file; name a config.")
    yield from found


def _hidden(file: Path) -> bool:
    """Whether it, or a folder that it is in, is a tool's own: `.github`, `.pre-commit-config.yaml`."""
    return any(part.startswith(".") for part in file.parts)


def _says(file: Path) -> bool:
    """Whether there is more in a file than comments: an empty one is Hydra's way of choosing nothing."""
    try:
        with file.open("rb") as lines:
            return any(not line.strip().startswith((b"#", b"---")) for line in lines if line.strip())
    except OSError:
        return file.is_file()


def lint_file(
    path: Path, settings: Settings | None = None, scripts: Sequence[Script] = (), card: float | None = None
) -> Diagnosis:
    """Judge a config, by itself and against ``scripts``; or a script or a notebook. Raises LintError.

    ``card`` is the memory of the card that it is going to run on, in GiB.
    """
    chosen = settings or Settings()
    if path.suffix.lower() in SCRIPTS:
        return conclude(str(path), path.suffix[1:], path.name, checked(Material(script=read_script(path)), chosen))
    configs = read_config(path)
    findings: list[Finding] = []
    for config in configs:
        findings += judged(config, chosen, scripts, card)
    notes = [said.sentence() for config in configs if (said := plan(config)).computed]
    return conclude(str(path), configs[0].format, path.name, findings, notes)


def judged(
    config: Config, settings: Settings, scripts: Sequence[Script] = (), card: float | None = None
) -> Iterator[Finding]:
    """What is wrong with a config, by itself and against each script."""
    known = replace(material(config), card=card)
    yield from checked(known, settings)
    yield from header.judge(config, settings)
    for script in scripts:
        yield from checked(replace(known, script=script), settings, compare=True)


def lint_command(
    words: Sequence[str], folder: Path, settings: Settings | None = None, card: float | None = None
) -> Diagnosis:
    """Judge a launch command: its script, its flags and overrides, and the configs that it names. Raises LintError."""
    chosen = settings or Settings()
    command = read_command(words)
    path = command.path(folder)
    script = read_script(path) if path is not None and path.is_file() else None
    tree = hydra_tree(command, script, folder)
    findings = list(checked(Material(script=script, command=command, hydra=tree, folder=folder), chosen))
    scripts = [script] if script else []
    for file in _named(command, tree, folder) or _written(script, folder):
        for config in read_config(file):
            config = replace(config, processes=command.processes)
            findings += judged(config, chosen, scripts, card)
    for config in overridden(command):
        said = Material(config, frozenset[Dialect](["omegaconf"]), script=script, folder=folder)
        findings += checked(replace(said, script=None), chosen)
        findings += checked(said, chosen, compare=True) if script else ()
    notes = ["the syntax of overrides was not judged: `pip install hydra-core` brings Hydra's parser"]
    silent = tree is None or not command.overrides or hydra_parser() is not None
    name = Path(command.script or command.module or words[0]).name
    return conclude(command.text, "command", name, findings, () if silent else notes)


def hydra_tree(command: Command, script: Script | None, folder: Path) -> HydraTree | None:
    """What Hydra composes for a command; None for one that is not Hydra's. Raises LintError."""
    name, place = command.option("--config-name"), command.option("--config-path", "--config-dir")
    main = script.hydra if script else None
    asked = (name.value if name else None) or (main.name if main else None)
    if asked is None or (main is None and name is None):
        return None
    beside = (folder / script.file).parent if script else folder
    within = (place.value if place else None) or (main.folder if main else None) or "."
    found = next((base / within for base in (beside, folder) if (base / within).is_dir()), beside / within)
    chosen = {item.key: item.value or "" for item in command.overrides if item.prefix in ("", "+") and item.value}
    chosen = {group: option for group, option in chosen.items() if HydraTree(found).is_group(group)}
    chosen = {group: option for group, option in chosen.items() if option in HydraTree(found).options(group)}
    tree = compose(found, asked, name.place if name else main.place if main else Place("command"), chosen)
    tree.open = tree.open or bool(script and "ConfigStore" in script.names)
    return tree


def _named(command: Command, tree: HydraTree | None, folder: Path) -> list[Path]:
    """The config files that a command reads."""
    told = [folder / option.value for option in command.options if option.value]
    told = [path for path in told if path.suffix.lower() in READERS and path.is_file()]
    composed = sorted({node.place.file for node in tree.keys.values()}) if tree else []
    return [*told, *(Path(file) for file in composed)]


def _written(script: Script | None, folder: Path) -> list[Path]:
    """The config file that a script reads if the command names none: the only one that is written in it and there."""
    found = [folder / name for name in script.configs if (folder / name).is_file()] if script else []
    return found if len(found) == 1 else []


def overridden(command: Command) -> Iterator[Config]:
    """The overrides as a config of their own, whose places are in the command."""
    values: dict[str, Node] = {}
    for item in command.overrides:
        if item.value is not None and item.key:
            values[item.key] = value_of(item.value, item.place, tuple(item.key.replace("/", ".").split(".")))
    if values:
        start = Place("command")
        yield Config("command", "command", Node((), values, start, start))


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


def checked(looked_at: Material, settings: Settings, *, compare: bool = False) -> Iterator[Finding]:
    """What every check says of it by itself; or those that compare a config with a script."""
    for name, check in catalogue().items():
        if check.compares == compare and name not in settings.checks_off:
            yield from check().look(looked_at)


def _in_order(finding: Finding) -> tuple[str, float, float]:
    said = finding.evidence
    return str(said["file"]), float(said["line"]), float(said["column"])


def conclude(source: str, form: str, name: str, findings: Iterable[Finding], notes: Iterable[str] = ()) -> Diagnosis:
    """The findings in the order of the file, as a diagnosis that every face can print."""
    ordered = sorted(findings, key=_in_order)
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
        prescription=of_findings(ordered),
    )


def lint_run(run: Run, settings: Settings | None = None) -> Diagnosis:
    """Judge a recorded run's own config and header, before its first step."""
    chosen = settings or Settings()
    config = recorded.config_of(run)
    tree = Material(config, frozenset[Dialect](["omegaconf"]))
    findings = [*recorded.judge(run, chosen), *checked(tree, chosen)]
    return conclude(str(run.source), run.format, run.name, findings)
