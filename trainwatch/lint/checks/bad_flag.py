"""See the check's docstring."""

from __future__ import annotations

from collections.abc import Iterator

from trainwatch.engine import nearest
from trainwatch.lint.check import Check, Material
from trainwatch.lint.sources.command import Option
from trainwatch.lint.sources.python_file import Flag, Script
from trainwatch.schema import Finding


class BadFlag(Check):
    """A flag that the script's own parser refuses.

    What it sees:
        The command's flags against every `add_argument` in the script: unknown names, a switch that is given a value,
        words where a number is read, values that are none of the choices, required flags that are missing.

    Why it matters:
        argparse ends the job at once, after it waited for its card.

    What to do:
        Write what the advice says.

    When it is wrong:
        Flags that another module adds to the parser; where the script passes its parser on, none is called unknown.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Each flag for itself, then those that are missing."""
        command, script = material.command, material.script
        if command is None or script is None or not script.flags or script.hydra is not None:
            return
        for option in command.options:
            flag = script.flag(option.name)
            if flag is not None:
                yield from self._value(option, flag)
            elif script.closed and option.name not in ("-h", "--help"):
                yield self._unknown(option, script)
        given = {flag.names[0] for option in command.options if (flag := script.flag(option.name))}
        for flag in script.flags if script.closed else ():
            if flag.required and flag.names[0] not in given:
                message = f"{flag.names[-1]} is required by {script.file} (line {flag.place.line}) and is not given."
                yield self.finding("critical", "", command.script_place, message, f"Add {flag.names[-1]} VALUE.")

    def _unknown(self, option: Option, script: Script) -> Finding:
        known = [name for flag in script.flags for name in flag.names]
        near = nearest(option.name, known)
        right = near.split("'")[1] if near else ""
        message = f"{option.name} is no flag of {script.file}{near or f'; it has {chr(44).join(known[:8])}.'}"
        return self.finding("critical", "", option.place, message, f"Write {right}." if right else "Leave it out.")

    def _value(self, option: Option, flag: Flag) -> Iterator[Finding]:
        said = option.value
        if said is None:
            if flag.takes:
                message = f"{option.name} takes a value, and none is given."
                yield self.finding("critical", "", option.place, message, f"Write {option.name} VALUE.")
        elif not flag.takes:
            if option.glued or said.lower() in ("true", "false", "1", "0", "yes", "no"):
                advice = (
                    f"Leave out {option.name}." if said.lower() in ("false", "0", "no") else f"Write {option.name}."
                )
                message = f"{option.name} is a switch and takes no value; {said} is given."
                yield self.finding("critical", "", option.place, message, advice)
        elif flag.choices and said not in map(str, flag.choices):
            near = nearest(said, [str(choice) for choice in flag.choices])
            right = near.split("'")[1] if near else "one of these"
            message = f"{option.name} {said} is none of {', '.join(map(str, flag.choices))}{near or '.'}"
            yield self.finding("critical", "", option.place, message, f"Write {right}.")
        elif flag.kind in ("int", "float") and not _fits(said, flag.kind):
            right = f"{option.name} {float(said):.0f}" if _fits(said, "float") else "a number"
            message = f"{option.name} is read as {flag.kind}, and {said} is none."
            yield self.finding("critical", "", option.place, message, f"Write {right}.")


def _fits(text: str, kind: str) -> bool:
    try:
        int(text) if kind == "int" else float(text)
    except ValueError:
        return False
    return True
