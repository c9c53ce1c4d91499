"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainwatch.lint.check import Check, Material
from trainwatch.lint.tree import Place
from trainwatch.schema import Finding

GROUP = re.compile(r"(?:.*[/_])?(?:arch|architecture|model|backbone|network|encoder)(?:_name|_type)?", re.IGNORECASE)
NAMES = ("--config-name", "--name", "--run-name", "--run_name", "--experiment", "--exp-name", "--exp_name")
KEYS = ("name", "run_name", "experiment", "experiment_name", "exp_name", "wandb.name", "run.name")
SHORTEST = 4  # letters of a word that says something: `big` and `v2` are in every name


class ArchitectureChoice(Check):
    """The architecture that runs by default is not the one that the run is named for.

    What it sees:
        The words of the config's and the run's name against the options of an architecture: one option, and not the
        chosen one, shares a word with the name (cfg_multimodal, and arch: perceiver beside perceiver_multimodal). One
        that the command chooses by itself is not judged.

    Why it matters:
        The run trains another model than its name says; whoever compares results by names compares wrongly.

    What to do:
        Choose the architecture in the command, or in the config that is named for it.

    When it is wrong:
        The name says something about the data that happens to be an option's name too.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Hydra's groups, then the choices of argparse."""
        command = material.command
        if command is None:
            return
        said = [option.value or "" for option in command.options if option.name in NAMES]
        said += [item.value or "" for item in command.overrides if item.key in KEYS]
        name = set().union(*(_words(text) for text in said))
        asked = {item.key for item in command.overrides} | {option.name for option in command.options}
        tree = material.hydra
        for group, option in tree.groups.items() if tree else ():
            if tree is not None and GROUP.fullmatch(group) and group not in asked:
                yield from self._judge(name, group, option, tree.options(group), f"{group}=", command.script_place)
        for flag in material.script.flags if material.script else ():
            own = flag.names[-1].lstrip("-").replace("-", "_")
            if flag.choices and GROUP.fullmatch(own) and not set(flag.names) & asked:
                options = [str(choice) for choice in flag.choices]
                yield from self._judge(
                    name, own, str(flag.default), options, f"{flag.names[-1]} ", command.script_place
                )

    def _judge(
        self, name: set[str], group: str, chosen: str, options: list[str], write: str, place: Place
    ) -> Iterator[Finding]:
        """One option, and not the chosen one, is in the name."""
        meant = [option for option in options if _words(option) & name]
        if len(meant) == 1 and chosen not in meant and chosen in options:
            word = min(_words(meant[0]) & name)
            yield self.finding(
                "warning",
                group.replace("/", "."),
                place,
                f"The run is named for {word}, and takes {group} {chosen} by default; there is {meant[0]}.",
                f"Add {write}{meant[0]}, or {write}{chosen} if that is meant.",
                confidence=0.7,
            )


def _words(text: str) -> set[str]:
    """The words of a name that say something."""
    return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) >= SHORTEST}
