"""No text of a stranger or a user is read by a shell: every rule, with hostile text everywhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from snakemake.utils import format as snakemake_format

from helpers.hostile_names import NAME, attacked, checkout, pwned
from helpers.models import llama
from helpers.workflow import REPOSITORY, environment
from shardmerge.plan.plan import NO_PLAN, FetchJob
from shardmerge.recipe.settings import load_settings
from shardmerge.run.targets import Targets, fetch_options

TEXT = "".join(p.read_text(encoding="utf-8") for p in sorted((REPOSITORY / "rules").glob("*.smk")))
RULES = re.findall(r"^rule (\w+):(?:(?!^rule )[\s\S])*?^    shell:", TEXT, re.MULTILINE)
RULES += re.findall(r"^use rule \w+ as (\w+) with:", TEXT, re.MULTILINE)
#: Words that a rule puts together itself, each `--option=value`; all else is an option's value.
WORDS = {"params.options", "params.source", "params.visibility"}
WORDS |= {"params.tools", "params.imatrix", "params.beside", "params.evidence", "params.commit"}
HOSTILE = [
    f"-{NAME}<>(){{a}} {{{{b}}}}\\",
    "~",
    "-x",
    "# {wildcards.name}",
    "!!",
    "a  b",
    "--",
    "''",
]
#: Settings that a param which Snakemake formats would change.
SETTINGS = {"card": {"description": "{wildcards.name} {name}"}}
DUMP = """\
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings
from snakemake.shell import shell
snakefile, config, out = map(Path, sys.argv[1:])
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    flow = api.workflow(
        snakefile=snakefile,
        resource_settings=ResourceSettings(cores=1),
        config_settings=ConfigSettings(configfiles=[config]),
        workdir=config.parent,
    )._workflow
    rules = {
        rule.name: {
            "shell": rule.shellcmd,
            "makes": len(rule.output),
            "message": rule.message,
            "fixed": [p for p in rule.params if not callable(p)],
        }
        for rule in flow.rules
    }
    out.write_text(json.dumps({"prefix": shell._process_prefix, "rules": rules}))
"""
#: Stands for Python: it starts at once, and only tells its words.
STUB = """\
#!/bin/sh
printf '%s\\0' "$@" > "$SEEN"
"""


@dataclass(frozen=True)
class Parsed:
    """The workflow as Snakemake has read it, and what tells how its scripts are called."""

    checkout: Path
    prefix: str
    rules: Mapping[str, Mapping]

    def called(self, command: str, value: str, folder: Path) -> tuple[list[str], list[str]]:
        """Return how a script is called by a rule's command, and each value that it was given.

        Args:
            command: The `shell` of a rule.
            value: What every placeholder holds, numbered so that no two are the same.
            folder: To run in.
        """
        values, given = _filled(command, value)
        stub = f"PATH={shlex.quote(str(self.checkout / 'bin'))}:$PATH; "
        text = f"{self.prefix} {stub}{snakemake_format(command, **values)}"
        seen = folder / "seen"
        done = subprocess.run(
            ["/bin/bash", "-c", text],
            cwd=folder,
            env=environment({"SEEN": str(seen)}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        words = [os.fsdecode(word) for word in seen.read_bytes().split(b"\0")[:-1]]
        assert Path(words[0]).is_file()
        return words, given


class Values(list):
    """What `input`, `output` and the like hold: a list with names."""


def _filled(command: str, value: str) -> tuple[dict[str, object], list[str]]:
    """Return values for the placeholders of a command, and all of them in their order."""
    values: dict[str, object] = {}
    given = []
    for before, field, _, _ in string.Formatter().parse(command):
        if field is None or field == "threads":
            continue
        few = [f"{value}{len(given)}"]
        if field in WORDS or before.endswith("-- "):
            few = [f"--a={few[0]}", f"{value}{len(given) + 1}"]
        if not before.endswith("> "):
            given += few
        root, _, name = field.partition(".")
        if name:
            setattr(values.setdefault(root, Values()), name, few)
        else:
            values[root] = Values(few)
    return values | {"threads": 2}, given


def faults(command: str) -> list[str]:
    """Return what is wrong with a rule's command as it is written."""
    found = []
    for before, field, how, _ in string.Formatter().parse(command):
        if field is not None and field != "threads":
            if how != "q":
                found.append(f"{field} is not quoted")
            if not (re.search(r"(--[\w-]+=|> | -- )$", before) or field in WORDS):
                found.append(f"{field} is not the value of an option, but could be one")
    if re.search(r"[$`\\]", command.replace('"$SCRIPTS"/', "")):
        found.append("reads more than $SCRIPTS")
    if command.count('"') != 2 or "'" in command:
        found.append("quotes what Snakemake quotes")
    return found


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Parsed:
    top = tmp_path_factory.mktemp("shell")
    home = checkout(top / "home")
    project = top / NAME
    llama(project / "a", 1, layers=1)
    recipe = {"merge_method": "linear", "dtype": "float16", "models": [{"model": "./a"}]}
    recipe["models"][0]["parameters"] = {"weight": 1}
    (project / "r.yaml").write_text(json.dumps(recipe))
    (project / "cfg.yaml").write_text(json.dumps({"recipes": ["r.yaml"]} | SETTINGS))
    (top / "dump.py").write_text(DUMP)
    words = [top / "dump.py", home / "Snakefile", project / "cfg.yaml", top / "rules.json"]
    # What the run started for its jobs outlives it a little: it must write nothing among the code.
    variables = environment({"PYTHONDONTWRITEBYTECODE": "1"})
    done = subprocess.run(
        [sys.executable, *words], cwd=project, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((top / "rules.json").read_text())
    (home / "bin").mkdir()
    (home / "bin" / "python").write_text(STUB)
    (home / "bin" / "python").chmod(0o755)
    shutil.rmtree(home / "scripts" / "shardmerge")
    return Parsed(home, told["prefix"], told["rules"])


class TestRules:
    def test_all_are_looked_at(self, parsed: Any) -> None:
        """A rule that makes something runs a script from its shell, and in no other way."""
        assert sorted(RULES) == sorted(n for n, rule in parsed.rules.items() if rule["shell"])
        idle = {name for name, rule in parsed.rules.items() if not rule["shell"]}
        assert idle == {
            "all",
            "models",
            "benchmarks",
            "report",
            "convert",
            "publish",
            "exports",
            "sweep",
            "search",
        }
        assert not any(parsed.rules[name]["makes"] for name in idle)

    @pytest.mark.parametrize("name", RULES)
    def test_as_written(self, parsed: Any, name: str) -> None:
        assert faults(parsed.rules[name]["shell"]) == []

    @pytest.mark.parametrize("name", RULES)
    def test_no_setting_is_formatted(self, parsed: Any, name: str) -> None:
        """A param that is no function goes through Snakemake's wildcards."""
        for value in parsed.rules[name]["fixed"]:
            for text in value if isinstance(value, list) else [value]:
                assert re.fullmatch(r"[\w./-]*", text or "")

    @pytest.mark.parametrize("name", RULES)
    def test_every_value_is_one_word(self, parsed: Any, name: str, tmp_path: Path) -> None:
        command = parsed.rules[name]["shell"]
        for value in HOSTILE:
            argv, given = parsed.called(command, value, tmp_path)
            script = command.partition('"$SCRIPTS"/')[2].split()[0]
            assert argv[0] == str(parsed.checkout / "scripts" / script)
            words = [re.sub(r"^--(?!a=)[\w-]+=", "", w) if "=" in w else w for w in argv[1:]]
            assert [w for w in words if w in given] == given
            assert len(argv) <= 1 + len(given) + len(re.findall(r"(?<= )--[\w-]*(?= |=)", command))
        logs = {f"{value}{n}" for value in HOSTILE for n in range(99)}
        assert len([p for p in tmp_path.iterdir() if p.name in logs]) == len(HOSTILE)
        assert pwned(tmp_path.parent, parsed.checkout.parent) == []


class TestWords:
    """What rules pass as whole words is an option with its value, whatever the value."""

    @pytest.mark.parametrize("value", HOSTILE)
    def test_of_a_fetched_file(self, value: str) -> None:
        job = FetchJob(value, value, value, value, 1, None, value)
        words = fetch_options(job)
        assert [w.partition("=")[2] for w in words] == [value, value, value, "1", value]
        assert all(re.match(r"--[\w-]+=", word) for word in words)

    def test_of_benchmarks(self) -> None:
        told = {"tasks": ["a"], "include_path": NAME, "limit": 3, "gpus": 2, "device": "cuda"}
        options = Targets(
            load_settings({"recipes": ["r"], "benchmark": told}), NO_PLAN
        ).benchmark_options()
        assert options == [f"--include-path={NAME}"]

    def test_labels_of_models_are_words(self) -> None:
        targets = Targets(load_settings({"recipes": ["r"]}), NO_PLAN)
        keys = [f"models/{NAME}", f"other/{NAME}", "owner/name", "owner/name@main"]
        plan = replace(NO_PLAN, sources=dict.fromkeys(keys))
        targets.plan = plan
        labels = [targets.label(key) for key in keys]
        assert len(set(labels)) == len(keys)
        assert all(re.fullmatch(r"[\w.+@-]+", label) for label in labels)


class TestTheTestItself:
    @pytest.mark.parametrize(
        "command",
        [
            'python "$SCRIPTS"/x.py --output={output} > {log:q} 2>&1',
            'python "$SCRIPTS"/x.py --output={output:q} > {log} 2>&1',
            'python "$SCRIPTS"/x.py --output {output:q} > {log:q} 2>&1',
            'python "$SCRIPTS"/x.py {input:q} > {log:q} 2>&1',
            'python "$SCRIPTS"/x.py --output="{output:q}" > {log:q} 2>&1',
            "python $SCRIPTS/x.py --output={output:q} > {log:q} 2>&1",
            "python \"$SCRIPTS\"/x.py $(printf -- '--o %s ' {output:q}) > {log:q} 2>&1",
        ],
    )
    def test_a_rule_that_forgets(self, command: str) -> None:
        assert faults(command)

    def test_an_attack_is_seen(self, parsed: Any, tmp_path: Path) -> None:
        (parsed.checkout / "scripts" / "x.py").touch()
        bad = 'python "$SCRIPTS"/x.py --output={output} > {log:q} 2>&1'
        parsed.called(bad, "$(touch PWNED)", tmp_path)
        assert attacked(tmp_path)


def test_a_checkout_in_braces_is_one_sentence(tmp_path: Path) -> None:
    """Snakemake formats the paths of a workflow's own files."""
    for name, target in (("{a}", REPOSITORY), ("config", REPOSITORY / "config")):
        (tmp_path / name).symlink_to(target)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", tmp_path / "{a}" / "Snakefile", "-n"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "error: the workflow's folder: " in done.stderr
    assert "braces" in done.stderr and "Traceback" not in done.stderr
