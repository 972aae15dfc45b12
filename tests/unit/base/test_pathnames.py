"""Names that a user may give, and names that a cluster's jobs can be told."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from snakemake.target_jobs import parse_target_jobs_cli_args
from snakemake_interface_executor_plugins.utils import (
    TargetSpec,
    encode_target_jobs_cli_args,
    format_cli_arg,
)

from helpers.hostile_names import NAME, attacked
from shardmerge.base.errors import UserError
from shardmerge.base.pathnames import (
    check_fetched_on_nodes,
    check_passed,
    check_path,
    check_text,
    check_word,
    too_long,
)
from shardmerge.recipe.naming import slug
from shardmerge.recipe.recipe import parse_recipe
from shardmerge.recipe.settings import load_settings

HIDDEN = ["a\nb", "a\x1b[31m", "a\x7f", "a\u202eb", "a\u2066b", "a\ud800", "a\u2028b"]
RECIPE = """\
name: {name}
merge_method: linear
models: [{{model: ./a, parameters: {{weight: 1}}}}]
"""


class TestPaths:
    @pytest.mark.parametrize("text", ["it's $(x);", "a b/c", "模/é", "../up", "/a", "x" * 200])
    def test_allowed(self, text: str) -> None:
        assert check_path(text, "here") == text

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "is empty"),
            ("-r", "looks like an option"),
            ("r{a}", "braces"),
            ("r}", "braces"),
            ("a/" + "模" * 67, "201 bytes"),
            *((text, "character U\\+") for text in HIDDEN),
        ],
    )
    def test_refused(self, text: str, says: str) -> None:
        with pytest.raises(UserError, match=f"^here: .*{says}") as refused:
            check_path(text, "here")
        assert str(refused.value).isprintable() or str(refused.value).count("\n") == 1

    def test_joiners_that_scripts_need_are_text(self) -> None:
        assert check_text("\u0645\u06cc\u200c\u062e", "here")

    @pytest.mark.parametrize("text", HIDDEN)
    def test_texts(self, text: str) -> None:
        with pytest.raises(UserError):
            check_text(text, "here")


class TestWords:
    @pytest.mark.parametrize("text", ["arc_easy", "wmt-t5.v1", "a@b+c"])
    def test_allowed(self, text: str) -> None:
        assert check_word(text, "here") == text

    @pytest.mark.parametrize("text", ["", "-a", "a b", "a/b", "$(x)", "a,b", "..", "a" * 101])
    def test_refused(self, text: str) -> None:
        with pytest.raises(UserError):
            check_word(text, "here")


class TestNames:
    @pytest.mark.parametrize("name", ["a" * 300, "a" * 20, "ab" * 25])
    def test_names_that_snakemake_refuses(self, name: str) -> None:
        """Snakemake would raise PeriodicWildcardError, or the file system refuse the folder."""
        with pytest.raises(UserError, match=r"^r\.yaml:1: the document's name"):
            parse_recipe(RECIPE.format(name=name), "r.yaml")
        assert too_long(slug(name)) is None

    def test_slugs_keep_what_is_short(self) -> None:
        assert slug("owner/name") == "owner--name"
        assert slug("it's a") != slug("it-s-a") == "it-s-a"
        assert slug("a" * 300 + "b") != slug("a" * 300 + "c")


class TestSettings:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("results", "r{name}"),
            ("results", "-r"),
            ("results", ""),
            ("results", "r\x1b[2J"),
            ("recipes", ["-r.yaml"]),
            ("sources", {"a": "b{c}"}),
            ("sources", {"a\u202eb": "c"}),
            ("benchmark", {"tasks": ["$(touch PWNED)"]}),
            ("benchmark", {"include_path": "-x"}),
            ("benchmark", {"device": "cpu\n"}),
            ("device", "cpu\n"),
            ("device", "cuda; touch PWNED"),
            ("link", "hard; touch PWNED"),
        ],
    )
    def test_refused(self, key: str, value: dict[str, Any] | list[Any] | str) -> None:
        with pytest.raises(UserError, match=f"^configuration: {key}"):
            load_settings({"recipes": ["r.yaml"], key: value})

    def test_allowed(self) -> None:
        values = {"results": "it's $(x); é", "card": {"description": "{a}\n\n- b"}}
        assert load_settings({"recipes": ["a b.yaml"]} | values)["results"] == values["results"]


def arrives(wildcards: dict[str, str], folder: Path) -> dict[str, str]:
    """Return a job's wildcards as it gets them on SLURM, through two shells and Snakemake."""
    told = encode_target_jobs_cli_args([TargetSpec("rule", wildcards)])
    command = f"printf '%s\\0' {format_cli_arg('--target-jobs', told)}".replace('"', '\\"')
    shells = f'/bin/sh -c "{command}"'
    done = subprocess.run(shells, shell=True, cwd=folder, capture_output=True, text=True)
    _, *words = done.stdout.split("\0")[:-1]
    [target] = parse_target_jobs_cli_args(words)
    return target.wildcards_dict


class TestClusters:
    @pytest.mark.parametrize(
        "name",
        [
            slug(f"models/{NAME}"),
            slug("owner/name"),
            "model-00001-of-00002",
            "wmt-t5.v1@a+b",
            "模é",
        ],
    )
    def test_wildcards_arrive(self, name: str, tmp_path: Path) -> None:
        wildcards = {"name": check_word(name, "here"), "file": f"sub/{name}.safetensors"}
        check_fetched_on_nodes({"p": wildcards["file"]})
        assert arrives(wildcards, tmp_path) == wildcards

    def test_what_is_refused_would_run(self, tmp_path: Path) -> None:
        """The reason of it all: the executor's command reads what it quotes."""
        assert arrives({"file": "x$(touch PWNED)"}, tmp_path) != {"file": "x$(touch PWNED)"}
        assert attacked(tmp_path)

    def test_folders(self) -> None:
        check_passed({"here": "/srv/é/my models/r_1.2"})
        for letter in "'\"$`\\!;&|(*~#<{%\n":
            with pytest.raises(UserError, match=r"^here: "):
                check_passed({"here": f"/srv/a{letter}b"})

    def test_files(self) -> None:
        check_fetched_on_nodes({"p": "sub/model-00001-of-00002.safetensors"})
        for name in ("a b", "a,b", "a=b", "a:b", "it's", "$(x)", "sub/-x"):
            with pytest.raises(UserError, match="fetch_on: head"):
                check_fetched_on_nodes({"p": name})
