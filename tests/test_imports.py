"""Who may import whom: the arrows of the design, read from the source; and what `import trainwatch` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JUDGED = (
    "diagnosis",
    "prescription",
    "compare",
    "axis",
    "figures",
    "engine",
    "rule",
    "run",
    "table",
    "header",
    "schema",
)
FACES = (*JUDGED, "text", "errors")
ARROWS = {  # the longest name that fits a module holds; each may also import its own package
    "schema": (),
    "header": (),
    "lines": (),
    "stats": (),
    "copying": (),
    "table": ("schema",),
    "schedule": ("schema",),
    "run": ("table", "header", "schema"),
    "foreign": ("lines", "run", "table", "schema"),
    "readers": ("foreign", "lines", "header", "run", "table", "schema"),
    "recorder": ("schema",),
    "transformers": ("recorder",),
    "lightning": ("recorder",),
    "accelerate": ("recorder",),
    "views": ("copying", "header", "run", "schedule", "schema", "stats", "table"),
    "rule": ("copying", "header", "views", "run", "table", "schema"),
    "bases": ("rule", "views", "run", "table", "header", "schema"),
    "rules": ("rule", "bases", "views", "copying", "stats", "schedule", "run", "table", "header", "schema"),
    "engine": ("rules", "rule", "views", "run", "table", "header", "schema"),
    "cures": ("run", "header", "schema"),
    "prescription": ("cures", "run", "header", "schema"),
    "diagnosis": ("prescription", "engine", "rule", "run", "header", "schema"),
    "parting": ("run", "table", "header", "stats", "schema"),
    "compare": ("parting", "axis", "lint", "views", "run", "table", "header", "stats", "diagnosis", "schema"),
    "judge": ("readers", "engine", "lint", "diagnosis", "run", "schema"),
    "index": ("readers", "prescription", "diagnosis", "engine", "run", "table", "schema"),
    "following": ("index", "readers", "engine", "diagnosis", "run", "schema"),
    "errors": ("foreign", "readers", "engine", "schema"),
    "lint": ("run", "header", "stats", "diagnosis", "prescription", "engine", "schema"),
    "axis": ("run", "table"),
    "figures": ("axis", "run", "table", "header", "schema", "schedule"),
    "export": ("run", "table", "header", "schema"),
    "report": (*FACES, "views"),
    "text": (*FACES, "judge", "parting"),
    "interrupt": (),
    "watch": (*FACES, "following", "interrupt", "judge"),
    "launch": ("errors",),
    "demo": (*FACES, "following", "interrupt", "launch", "readers", "judge", "report"),
    "trial": (*FACES, "following", "interrupt", "launch", "readers"),
    "alerts": FACES,
}
PLUGINS = ("readers", "rules")
MODULES = sorted((ROOT / "trainwatch").rglob("*.py"))


def imports(path):
    """Every module that a file imports anywhere in it, typing-only imports aside."""
    tree = ast.parse(path.read_text())
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            whole = [f"{module}.{alias.name}" for alias in node.names]
            files = [ROOT / full.replace(".", "/") for full in whole]
            inside = [file.is_dir() or file.with_suffix(".py").exists() for file in files]
            yield from (full if module_too else module for full, module_too in zip(whole, inside, strict=True))


def part(module):
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    """Nobody imports the package root or the command line; rules and readers do not know each other."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    ours = {module for module in imports(path) if module.split(".")[0] == "trainwatch"}
    own = part(name)
    if own not in ("", "cli", "__main__"):
        assert not {module for module in ours if module == "trainwatch" or part(module) == "cli"} - {"trainwatch.rules"}
    if own in ARROWS:
        siblings = {module for module in ours if part(module) == own} if path.name != "__init__.py" else set()
        allowed = {"trainwatch.readers"} if own == "readers" else set()
        assert own not in PLUGINS or siblings <= allowed
        assert {part(module) for module in ours} - {own, *ARROWS[own]} - {""} == set()
    foreign = {module.split(".")[0] for module in imports(path)}
    assert "trainer" not in foreign
    assert "dashboards" not in foreign or own in ("cli", "demo")


def test_the_dashboard_and_the_trainer_keep_apart():
    """dashboards know trainwatch, never trainer or recorder; the trainer knows trainwatch's public names only."""
    for path in (ROOT / "dashboards").rglob("*.py"):
        assert not {m for m in imports(path) if m.split(".")[0] == "trainer" or m.startswith("trainwatch.recorder")}
    for path in (ROOT / "trainer").rglob("*.py"):
        assert not {m for m in imports(path) if m.startswith(("trainwatch.", "dashboards"))}, path


def test_import_is_light():
    """What is heavy is loaded where it is first needed."""
    code = "import sys, trainwatch; print(sorted({'torch', 'pandas', 'plotly', 'dash'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
