"""One set of versions everywhere, an environment for every rule, and nothing of one machine."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

REPO = Path(__file__).parents[3]
ENVIRONMENTS = sorted((REPO / "envs").glob("*.yaml"))
RULES = sorted((REPO / "rules").glob("*.smk"))
_PIN = re.compile(r"([A-Za-z0-9][\w.-]*)==(\S+)")


def _normal(name: str) -> str:
    """Return a distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(lines: Any) -> dict[str, str]:
    """Return the version of each distribution; every line must pin one exactly."""
    pins = {}
    for line in lines:
        if not line.strip() or line.startswith(("#", "-r ")):
            continue
        match = _PIN.fullmatch(line.strip())
        assert match, f"not an exact version: {line!r}"
        assert _normal(match[1]) not in pins, f"twice: {line!r}"
        pins[_normal(match[1])] = match[2]
    return pins


#: What runs the workflow: for merging, for what needs torch, for benchmarks.
LISTS = ("requirements-merge.txt", "requirements-torch.txt", "requirements-bench.txt")
#: What single forms of exports need besides.
SUBJECTS = tuple(f"requirements-{name}.txt" for name in ("gguf", "compressed", "sign", "slurm"))


def _required(*names: str) -> dict[str, str]:
    """Return the version of each distribution of these lists, by default of all that run it."""
    found: dict[str, str] = {}
    for name in names or LISTS:
        own = _pins((REPO / name).read_text().splitlines())
        assert own.items() >= {pin: found[pin] for pin in own.keys() & found.keys()}.items(), name
        found |= own
    return found


def _tracked() -> list[Path]:
    """Return the text files that are, or are about to be, part of the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [REPO / name for name in listing.stdout.split("\0") if name]
    return [path for path in files if path.is_file() and path.suffix != ".safetensors"]


class TestPins:
    def test_requirements_are_exact(self) -> None:
        assert _required()["torch"] == "2.13.0"

    def test_all_is_the_three_lists(self) -> None:
        text = (REPO / "requirements.txt").read_text()
        assert re.findall(r"^-r (.+)$", text, re.MULTILINE) == list(LISTS)
        assert _pins(text.splitlines()) == {}

    def test_merging_needs_neither_torch_nor_benchmarks(self) -> None:
        """What a list's packages need is in it, or in one before it (as installed here)."""
        merge, torch = _required(LISTS[0]), _required(*LISTS[:2])
        assert not {"torch", "transformers", "lm-eval", "datasets", "pandas"} & set(merge)
        assert _closure(merge) <= set(merge)
        assert _closure(torch) <= set(torch)

    def test_submitting_jobs_needs_no_more_than_its_list(self) -> None:
        known = _required(LISTS[0]) | _required("requirements-slurm.txt")
        assert "snakemake-executor-plugin-slurm" in known
        assert _closure(known) <= set(known)

    def test_test_requirements_add_and_never_contradict(self) -> None:
        text = (REPO / "requirements-test.txt").read_text()
        assert "\n-r requirements.txt\n" in f"\n{text}"
        assert not set(_required("requirements-test.txt")) & set(_required())

    def test_lists_of_single_subjects_contradict_none(self) -> None:
        known = _required() | _required("requirements-test.txt")
        for name in (*SUBJECTS, "requirements-gguf-test.txt"):
            own = _required(name)
            assert {n: known.get(n, version) for n, version in own.items()} == own

    def test_mergekit_is_for_tests_only(self) -> None:
        assert _required("requirements-test.txt")["mergekit"] == "0.1.5"
        for path in (REPO / "scripts").rglob("*.py"):
            assert "mergekit" not in _imports(path), path

    @pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda p: p.name)
    def test_environment_equals_requirements(self, path: Path) -> None:
        environment = yaml.safe_load(path.read_text())
        (packages,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
        own = REPO / f"requirements-{path.stem}.txt"
        lists = [own.name] if path.stem == "vllm" else [*LISTS, *SUBJECTS]
        required = _required(*lists)
        for name, version in _pins(packages).items():
            assert required.get(name) == version, name
        assert "python=3.11" in environment["dependencies"]

    def test_vllm_differs_only_where_it_must(self) -> None:
        """lm-eval and data sets are the same for both backends; what vLLM pins is its own."""
        own, common = _required("requirements-vllm.txt"), _required()
        odd = {name for name, version in own.items() if common.get(name) != version}
        assert odd <= {"vllm", "torch", "transformers", "numpy", "huggingface-hub", "safetensors"}

    def test_installed_versions(self) -> None:
        """What runs this test is what the lists say."""
        from importlib.metadata import PackageNotFoundError, version

        for name in ("torch", "snakemake", "safetensors", "huggingface-hub", "transformers"):
            try:
                found = version(name)
            except PackageNotFoundError:
                pytest.skip(f"{name} is not installed")
            assert found.partition("+")[0] == _required()[name]


def _closure(names: Any) -> set[str]:
    """Return distributions and all that they need, as what is installed says."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needed = map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
        found.add(name)
        plain = [r for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
        waiting += [_normal(r.name) for r in plain]
    return found


class TestCommand:
    def test_lists_are_the_projects_dependencies(self) -> None:
        dynamic = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
        told = dynamic["dynamic"]
        assert told["dependencies"]["file"] == [LISTS[0]]
        assert told["optional-dependencies"]["bench"]["file"] == list(LISTS[1:])

    @pytest.mark.slow
    def test_installs_without_a_network_and_runs_from_anywhere(self, tmp_path: Path) -> None:
        """As `make env` does, in an environment that sees the packages of this one."""
        pytest.importorskip("setuptools")
        copy = tmp_path / "checkout"
        shutil.copytree(REPO / "scripts" / "shardmerge", copy / "scripts" / "shardmerge")
        for name in ("pyproject.toml", "README.md", "Snakefile", *LISTS):
            shutil.copy(REPO / name, copy / name)
        venv = tmp_path / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        (site,) = venv.glob("lib/python*/site-packages")
        (site / "these.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
        install = ["-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
        subprocess.run([venv / "bin/python", *install, "--editable", copy], check=True)
        done = subprocess.run(
            [venv / "bin/shardmerge", "--version"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.stdout == "shardmerge 0.1.0\n", done.stderr


class TestRules:
    @pytest.mark.parametrize("path", RULES, ids=lambda p: p.name)
    def test_conda_files_exist(self, path: Path) -> None:
        for name in re.findall(r'"(\.\./envs/[^"]+)"', path.read_text()):
            assert (path.parent / name).resolve() in ENVIRONMENTS, name

    @pytest.mark.parametrize("path", RULES, ids=lambda p: p.name)
    def test_rules_that_run_something_have_one(self, path: Path) -> None:
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            if "\n    shell:" in rule:
                assert "\n    conda:" in rule, rule.partition(":")[0]

    def test_every_environment_is_used(self) -> None:
        used = {
            Path(name).name
            for path in RULES
            for name in re.findall(r'"(\.\./envs/[^"]+)"', path.read_text())
        }
        assert used == {path.name for path in ENVIRONMENTS}

    @pytest.mark.parametrize("path", RULES, ids=lambda p: p.name)
    def test_scripts_exist(self, path: Path) -> None:
        for name in re.findall(r"\$SCRIPTS/([\w./]+)", path.read_text()):
            assert (REPO / "scripts" / name).is_file(), name


class TestPlanningIsLight:
    def test_nothing_heavy_is_imported_to_plan(self) -> None:
        """Every job of a cluster parses the Snakefile: no library of tensors may load for it."""
        code = (
            "import sys; sys.path.insert(0, 'scripts')\n"
            "import shardmerge.plan.decide, shardmerge.recipe.settings, shardmerge.run.targets\n"
            "from shardmerge.methods import registry; registry.methods()\n"
            "heavy = ('torch', 'transformers', 'datasets', 'lm_eval', 'numpy')\n"
            "print([name for name in heavy if name in sys.modules])"
        )
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == "[]"


class TestNothingOfOneMachine:
    def test_no_absolute_paths(self) -> None:
        pattern = re.compile(r"(?<![\w.:/\-~$}>])/(?:home|Users|root|work|mnt|tmp)/[\w.-]+")
        found = [
            f"{path.relative_to(REPO)}:{number}: {line.strip()[:80]}"
            for path in _tracked()
            for number, line in enumerate(_lines(path), 1)
            if pattern.search(line) and "no-machine-path" not in line
        ]
        assert found == []

    def test_no_package_index_hosts(self) -> None:
        """Where packages come from is for pip's and conda's configuration to say."""
        hosts = ("index-" + "url", "files.python" + "hosted.org", "download.pytorch" + ".org")
        pattern = re.compile("|".join(map(re.escape, (*hosts, "pypi" + ".org/simple"))))
        found = [
            f"{path.relative_to(REPO)}:{number}"
            for path in _tracked()
            for number, line in enumerate(_lines(path), 1)
            if pattern.search(line)
        ]
        assert found == []


def _imports(path: Path) -> set[str]:
    """Return the top-level packages that a module imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
