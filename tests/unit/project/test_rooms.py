"""What holds of the library's rooms beside their order, which import-linter holds (`make lint`)."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardmerge.methods import registry

REPO = Path(__file__).parents[3]
LIBRARY = REPO / "scripts" / "shardmerge"
MODULES = {p.relative_to(LIBRARY).with_suffix("").as_posix(): p for p in LIBRARY.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
INTERNALS = "run/snakemake_internals"
#: What rules may use of Snakemake's object: it is documented.
DOCUMENTED = {"basedir"}
#: What the file that finds the library uses, since it cannot ask the library.
FINDING = {"home.smk": {"current_basedir", "source_cache_path"}}
#: What two rooms render, each in its way.
RENDERINGS = {method.name for method in registry.methods()}


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the public names that a module defines."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [t.id for t in targets if isinstance(t, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def test_no_two_files_of_tests_have_one_name() -> None:
    """pytest could not collect both: folders of tests are no packages."""
    names = Counter(path.name for path in (REPO / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_public_name_is_defined_in_two_rooms() -> None:
    rooms: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        for name in set(defined(tree)) - RENDERINGS:
            rooms.setdefault(name, set()).add(module.partition("/")[0])
    assert {name: sorted(found) for name, found in rooms.items() if len(found) > 1} == {}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {INTERNALS}))
def test_snakemake_is_not_imported(module: str) -> None:
    for node in ast.walk(TREES[module]):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0].startswith("snakemake")]


@pytest.mark.parametrize("path", sorted((REPO / "rules").glob("*.smk")), ids=lambda p: p.name)
def test_rules_leave_snakemakes_internals_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"\bworkflow\.(\w+)", text)) <= DOCUMENTED | FINDING.get(path.name, set())
    assert not re.search(r"^\s*(from|import) snakemake\b", text, re.MULTILINE)
    assert "sys.argv" not in text
