"""See the check's docstring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainwatch.lint.check import Check, Material
from trainwatch.lint.paths import near_file
from trainwatch.lint.sources.files import READERS
from trainwatch.lint.sources.hydra_tree import SUFFIX, Missing
from trainwatch.schema import Finding


class MissingConfig(Check):
    """The script, config or option that a command or a defaults list asks for is not there.

    What it sees:
        The script that is launched, `--config-name` in Hydra's folder of configs, every option of a defaults list, and
        config files among the flags.

    Why it matters:
        The job ends as soon as it gets its card, after it waited for it.

    What to do:
        Write the nearest name.

    When it is wrong:
        The config is registered in code (ConfigStore), or lies in an installed package.

    References:
        `--config-name=cfg_multimodal` where only cfg_pretrain exists; the deleted run_production_training.py.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """The script, then what Hydra composes, then the flags."""
        if material.command is None:
            return
        command, folder = material.command, material.folder
        script = command.path(folder)
        if script is not None and not script.is_file():
            near = near_file(script.parent, script.name)
            right = str(Path(command.script).with_name(near)) if near else ""
            yield self.finding(
                "critical",
                "",
                command.script_place,
                f"The script {command.script} is not there{f'; {right} is' if right else ''}.",
                f"Write {right}." if right else "Name a script that exists, from this folder.",
            )
        for missing in material.hydra.missing if material.hydra else ():
            yield self._option(missing)
        yield from self._files(material)

    def _option(self, missing: Missing) -> Finding:
        there = sorted(file.stem for file in missing.folder.glob(f"*{SUFFIX}")) if missing.folder.is_dir() else []
        near = near_file(missing.folder, missing.option + SUFFIX).removesuffix(SUFFIX)
        near = near or next((name for name in there if _begins_alike(name, missing.option)), "")
        what = f"option {missing.option} of {missing.group}" if missing.group else f"config {missing.option}"
        listed = f"; there are {', '.join(there[:8])}" if there else f": {missing.folder} has no configs"
        return self.finding(
            "critical",
            missing.group.replace("/", "."),
            missing.place,
            f"The {what} is not there{listed}.",
            f"Write {near}." if near else "Write one of these." if there else "Correct the folder.",
        )

    def _files(self, material: Material) -> Iterator[Finding]:
        assert material.command is not None
        for option in material.command.options:
            value = Path(option.value or "")
            if "conf" in option.name and value.suffix in READERS and not (material.folder / value).exists():
                near = near_file((material.folder / value).parent, value.name)
                right = str(value.with_name(near)) if near else ""
                yield self.finding(
                    "critical",
                    "",
                    option.place,
                    f"{option.name} is {value}, which is not there{f'; {right} is' if right else ''}.",
                    f"Write {right}." if right else "Name a config that exists, from this folder.",
                )


def _begins_alike(name: str, other: str) -> bool:
    """`cfg_pretrain` is what `cfg_multimodal` may have become."""
    return name.split("_")[0] == other.split("_")[0] and "_" in name
