"""See the check's docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from trainwatch.engine import nearest
from trainwatch.lint.check import Check, Material
from trainwatch.lint.sources.command import Override, hydra_parser
from trainwatch.lint.sources.hydra_tree import HydraTree
from trainwatch.lint.sources.yaml_file import value_of
from trainwatch.lint.tree import Node
from trainwatch.schema import Finding

NAMED = re.compile(r"\[\s*\w+\s*=[^\[\]{}]*\]")
"""Names in a list: a mapping is meant."""
MULTIRUN = "--multirun"
OWN = ("hydra", "hydra.")


class BadOverride(Check):
    """An override of the command line that Hydra refuses, or takes for something else.

    What it sees:
        The syntax of every override, as Hydra's own parser judges it (where hydra-core is installed); the prefix
        against what is composed (`key=` for what is there, `+key=` for what is not, `~key` to delete); options of
        groups; a list where a mapping is, a mapping or a word where a list is; a comma that means a sweep.

    Why it matters:
        The job ends with `Could not override`, or trains one path where several were meant.

    What to do:
        Write what the advice says. A shell needs quotes around brackets and spaces: 'data_paths=[a.txt,b.txt]'.

    When it is wrong:
        Keys that are only registered in code; where there are any, no key is called unknown.

    References:
        Hydra, Basic Override syntax. `dataset_args` given as a list.
    """

    def look(self, material: Material) -> Iterator[Finding]:
        """Each override for itself."""
        command, tree = material.command, material.hydra
        if command is None or tree is None:
            return
        for override in command.overrides:
            refused = _refused(override.text)
            if refused:
                yield self._say(override, f"Hydra cannot read {override.text}: {refused}.", _quoting(override))
            elif not override.key.startswith(OWN) and not tree.missing:
                yield from self._against(override, tree, sweeps=command.option(MULTIRUN) is not None)
        for option in command.options:
            key = option.name.lstrip("-").replace("-", "_")
            if key in tree.keys and option.name.startswith("--"):
                right = f"{key}={option.value if option.value is not None else 'true'}"
                message = f"{option.name} is no flag of Hydra's: settings are given without dashes."
                yield self.finding("warning", key, option.place, message, f"Write {right}.")

    def _against(self, override: Override, tree: HydraTree, *, sweeps: bool) -> Iterator[Finding]:
        group, _, _ = override.key.partition("@")
        present = override.key.replace("/", ".") in tree.keys or group in tree.groups
        if tree.is_group(group) and (group in tree.groups or override.prefix):
            yield from self._option(override, group, tree)
        elif override.prefix == "+" and override.key in tree.keys:
            yield self._say(
                override, f"{override.key} is there already, and + only adds.", f"Write {override.text[1:]}."
            )
        elif not present and override.prefix in ("", "~") and not tree.open:
            yield self._unknown(override, tree)
        elif present and override.value is not None:
            yield from self._shape(override, tree.keys.get(override.key), sweeps=sweeps)

    def _option(self, override: Override, group: str, tree: HydraTree) -> Iterator[Finding]:
        asked, known = override.value or "", tree.options(group)
        if asked in ("", "null") or asked.startswith(("[", "$")) or "," in asked or asked in known:
            return
        near = nearest(asked, known)
        right = near.split("'")[1] if near else ""
        message = f"{group} has no option {asked}; there are {', '.join(known[:8])}."
        yield self._say(override, message, f"Write {group}={right}." if right else "Write one of these.")

    def _unknown(self, override: Override, tree: HydraTree) -> Finding:
        near = nearest(override.key, [*tree.keys, *tree.groups])
        right = near.split("'")[1] if near else ""
        add = f"+{override.text.lstrip('~')}"
        close = f"Write {override.prefix}{right}={override.value}" if right else ""
        message = f"{override.key} is nowhere in the config{near}{'' if near.endswith('?') else '.'}"
        return self._say(override, message, f"{close}, or {add} to add it." if close else f"Write {add} to add it.")

    def _shape(self, override: Override, base: Node | None, *, sweeps: bool) -> Iterator[Finding]:
        text = override.value or ""
        if base is None or text.startswith("$") or "${" in text:
            return
        given = value_of(text, override.place, (override.key,))
        if "," in text and text[:1] not in "[{'\"(" and not sweeps:
            message = f"{override.text} means a sweep over {text.count(',') + 1} runs, without --multirun."
            yield self._say(override, message, f"Write '{override.key}=[{text}]' for a list.")
        elif base.children and not given.children and text != "null":
            names = ", ".join(list(base.children)[:4])
            what = "a list" if given.items or text == "[]" else f"{text!r}"
            message = (
                f"{override.key} is a mapping ({names}), and {what} is given: nothing can be read from it by name."
            )
            yield self._say(override, message, f"Write {override.key}.{next(iter(base.children))}=...", "critical")
        elif isinstance(base.value, list) and given.scalar and text not in ("null", ""):
            message = f"{override.key} is a list, and the single value {text} is given."
            yield self._say(override, message, f"Write '{override.key}=[{text}]'.")
        elif base.number is not None and not isinstance(base.value, str) and not sweeps:
            yield from self._number(override, base, given)

    def _number(self, override: Override, base: Node, given: Node) -> Iterator[Finding]:
        if given.scalar and given.value is not None and given.number is None and not isinstance(given.value, bool):
            message = f"{override.key} is the number {base.written}, and {override.value!r} is none."
            yield self._say(override, message, f"Write {override.key}={base.written} or another number.")
        elif not given.scalar:
            message = f"{override.key} is the number {base.written}, and a list or mapping is given."
            yield self._say(override, message, f"Write {override.key}={base.written} or another number.")

    def _say(self, override: Override, message: str, advice: str, severity: Any = "warning") -> Finding:
        return self.finding(severity, override.key, override.place, message, advice)


def _refused(text: str) -> str:
    """Why Hydra's parser refuses an override; empty where it takes it, or is not installed."""
    parser = hydra_parser()
    if parser is None:
        return ""
    try:
        parser.create().parse_override(text)
    except Exception as error:
        return (str(error).splitlines() or ["no reason is given"])[0].rstrip(".")
    return ""


def _quoting(override: Override) -> str:
    value = override.value or ""
    if NAMED.fullmatch(value):
        inside = re.sub(r"\s*=\s*", ":", value[1:-1])
        return f"Write '{override.key}={{{inside}}}' for a mapping."
    if value.count("[") != value.count("]") or value.count("{") != value.count("}"):
        return "Close the bracket, without spaces, or put the whole override in the shell's quotes."
    if " " in value and value[:1] in "[{":
        return "Leave out the spaces, or put quotes around each entry."
    return f"Put the value in quotes: '{override.key}=\"{value}\"'." if value else f"Write {override.key}=value."
