"""The catalogue of rules and the graph of causes, drawn from the rules themselves.

python docs/rules.py     writes docs/rules.md
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from trainwatch.engine import catalogue
from trainwatch.figures.style import GREY, PALETTE
from trainwatch.lint import check
from trainwatch.rule import Rule, page
from trainwatch.schema import SEVERITIES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/rules.md"
FAINT = "22"  # of 255: a colour that lets a light page and a dark one through
HEAD = ("```mermaid", '%%{init: {"flowchart": {"nodeSpacing": 14, "rankSpacing": 70}}}%%', "flowchart LR")
Rules = Mapping[str, type[Rule]]


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(catalogue()))
    print(f"{PAGE} {PAGE.stat().st_size // 1000} kB")


def written(known: Rules) -> str:
    """The whole page."""
    return "\n".join(_lines(known)) + "\n"


def causes(known: Rules) -> list[tuple[str, str]]:
    """Every pair of a rule and one that its findings would explain, as far as both are there."""
    return [(cause, effect) for cause, rule in known.items() for effect in rule.causes if effect in known]


def cycle(edges: list[tuple[str, str]]) -> list[str]:
    """Rules that explain each other in a circle; empty if there is none."""
    left = set(edges)
    while left:
        effects = {effect for _, effect in left}
        inner = {(cause, effect) for cause, effect in left if cause in effects}
        if inner == left:
            return sorted({cause for cause, _ in left})
        left = inner
    return []


def _lines(known: Rules) -> Iterator[str]:
    edges, families = causes(known), _families(known)
    yield from (
        "# The rules",
        "",
        "Written by `python docs/rules.py` from the rules themselves.",
        "",
        f"{len(known)} rules in {len(families)} families. `trainwatch rules NAME` shows a rule's page: what it sees, "
        "why it matters, what to do, when it is wrong, and the reason of each threshold. *Up to* is the gravest that a "
        "rule says: *critical*, the run is lost or teaches nothing; *warning*, it will cost quality or time; *info*, "
        "worth knowing. A rule whose *needs* a log does not have is withheld, and said to be.",
        "",
        "One sickness shows in many places. Each rule names those whose findings it would explain, and the diagnosis "
        f"follows these arrows from effect to cause: {len(edges)} of them. Here are their numbers between families; "
        "below, each family's own arrows are drawn, without those that others say end to end.",
        "",
        *_between(known, edges, families),
    )
    for family, names in families.items():
        yield from _family(family, names, known, edges)
    yield from _before()


def _before() -> Iterator[str]:
    """The checks of a config, of a command and of a script."""
    yield from ("", "## Before the run", "")
    yield from (
        "What `trainwatch lint` sees in a config, a launch command or a script, besides what the rules above see in a "
        "plan. `off` in `[tool.trainwatch]` switches checks off as it does rules.",
        "",
        "| check | what it says | up to |",
        "| --- | --- | --- |",
    )
    for name, found in check.catalogue().items():
        said = " ".join(page(found)[""].split()).replace("|", "\\|")
        yield f"| `{name}` | {said} | {gravest(found)} |"


def _families(known: Rules) -> dict[str, list[str]]:
    """Names by family, both in the order of the alphabet."""
    members = sorted((rule().family, name) for name, rule in known.items())
    return {family: [name for _, name in group] for family, group in groupby(members, key=lambda item: item[0])}


def _family(family: str, names: list[str], known: Rules, edges: list[tuple[str, str]]) -> Iterator[str]:
    about = inspect.getdoc(importlib.import_module(f"trainwatch.rules.{family}")) or ""
    yield from ("", f"## {family}", "", _sentence(about.partition(": ")[2]), "")
    yield from ("| rule | what it says | up to | needs |", "| --- | --- | --- | --- |")
    for name in names:
        needs = "<br>".join(" or ".join(f"`{one}`" for one in need.split("|")) for need in known[name].needs)
        said = " ".join(page(known[name])[""].split()).replace("|", "\\|")
        yield f"| `{name}` | {said} | {gravest(known[name])} | {needs} |"
    own = _direct([(cause, effect) for cause, effect in edges if cause in names])
    if own:
        yield from ("", *_graph(own, _paints(known)))


def _direct(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the arrows that others, end to end, say as well."""
    effects: dict[str, set[str]] = {}
    for cause, effect in edges:
        effects.setdefault(cause, set()).add(effect)

    def reached(name: str, seen: set[str]) -> set[str]:
        for effect in effects.get(name, set()) - seen:
            seen.add(effect)
            reached(effect, seen)
        return seen

    return [(a, b) for a, b in edges if not any(b in reached(other, {a}) - {a} for other in effects[a] - {b})]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def gravest(rule: type[Rule] | type[check.Check]) -> str:
    """The highest severity that stands in a rule's source other than in a comparison; info if there is none."""
    tree = ast.parse(Path(inspect.getfile(rule)).read_text())
    compared = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Compare) for inner in ast.walk(node)}
    written = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in compared}
    return next((name for name in reversed(SEVERITIES) if name in written), SEVERITIES[0])


def _paints(known: Rules) -> dict[str, str]:
    """The family of each rule, and so its colour."""
    return {name: rule().family for name, rule in known.items()}


def _between(known: Rules, edges: list[tuple[str, str]], families: Mapping[str, list[str]]) -> Iterator[str]:
    """Family to family, with the number of arrows; a drawing of as many would be a knot."""
    of = _paints(known)
    counts = Counter((of[cause], of[effect]) for cause, effect in edges if of[cause] != of[effect])
    counted = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    yield from ("| family | rules | explains findings of | is explained by |", "| --- | --- | --- | --- |")
    for family, names in families.items():
        effects = ", ".join(f"{effect} {count}" for (cause, effect), count in counted if cause == family)
        causes = ", ".join(f"{cause} {count}" for (cause, effect), count in counted if effect == family)
        yield f"| [{family}](#{family}) | {len(names)} | {effects} | {causes} |"


def _graph(edges: list[tuple[str, str]], of: Mapping[str, str]) -> Iterator[str]:
    """The arrows of one family; each rule in its own family's colour."""
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    yield from HEAD
    for name in names:
        yield f"    r-{name}([{name}]):::{of[name]}"  # a bare "class-imbalance" would be Mermaid's own word
    for cause, group in groupby(edges, key=lambda edge: edge[0]):
        yield f"    r-{cause} --> {' & '.join(f'r-{effect}' for _, effect in group)}"
    yield from (*_styles({of[name]: [] for name in names}), "```")


def _styles(families: Mapping[str, list[str]]) -> Iterator[str]:
    """A colour for each family, the same in every drawing."""
    order = sorted(path.name for path in (ROOT / "trainwatch/rules").iterdir() if (path / "__init__.py").exists())
    for family in sorted(families):
        again, index = divmod(order.index(family), len(PALETTE))
        dashes = ",stroke-dasharray:5 3" * again  # the second cue, where colours run out
        yield f"    classDef {family} fill:{PALETTE[index]}{FAINT},stroke:{PALETTE[index]},stroke-width:1.5px{dashes}"
    yield f"    linkStyle default stroke:{GREY},stroke-width:1.2px"


if __name__ == "__main__":
    main()
