"""What the run was told to do, and what of that the last healthy run of the same name was told otherwise."""

from __future__ import annotations

from typing import Any

from trainwatch.compare import compare
from trainwatch.diagnosis import Diagnosis
from trainwatch.header import flat
from trainwatch.report.moments import utc
from trainwatch.report.redaction import Redactor
from trainwatch.report.section import Section
from trainwatch.run import Run
from trainwatch.text import wording

Told = tuple[Run, Diagnosis]


def config(run: Run, redactor: Redactor | None) -> Section:
    """The configuration as it was resolved."""
    rows = [(path, _shown(path, value, redactor)) for path, value in flat(run.header.config) if path]
    return Section.of("Configuration", ("setting", "value"), rows, folded=True)


def difference(run: Run, said: Diagnosis, twin: Told | None, redactor: Redactor | None) -> Section:
    """The settings that are not those of the last healthy run; says so where there was none."""
    title = "Difference to the last healthy run"
    if twin is None:
        name = wording.clean(said.run, 80)
        return Section(title, f"No other run called {name} in its folder finished without a warning.")
    told = compare([twin, (run, said)])
    rows = [
        (item.path, *(_shown(item.path, value, redactor) for value in item.values))
        for item in (*told.config, *told.facts)
        if redactor is None or item.path.partition(".")[0] not in ("device", "git", "packages", "python")
    ]
    when = utc(twin[0].header.time)
    about = f"The last healthy run is {wording.clean(twin[1].source, 200)}{f', of {when}' if when else ''}. "
    partings = [item.step for item in told.partings if item.step is not None]
    about += f"The two part at step {min(partings):,}. " if partings else "No curve of the two parts. "
    about += "" if rows else "Their settings are the same."
    return Section.of(title, ("setting", "healthy", "this run"), rows, about=about.strip())


def _shown(path: str, value: Any, redactor: Redactor | None) -> str:
    said = wording.clean(value, 300) if not isinstance(value, float) else f"{value:g}"
    return redactor.setting(path, said) if redactor else said
