"""What models are called: short where that is unique, and harmless where it is a path or public."""

from __future__ import annotations

from shardmerge.recipe.naming import (
    folder_names,
    short_names,
    short_public_names,
    shortener,
    slug,
)


class TestShortNames:
    def test_the_owner_goes_where_the_name_is_unique(self) -> None:
        names = short_names(["a/one", "b/two@main", "c/same", "d/same"])
        assert names == {
            "a/one": "one",
            "b/two@main": "two",
            "c/same": "c/same",
            "d/same": "d/same",
        }

    def test_a_label_keeps_all_but_the_references(self) -> None:
        shorten = shortener(short_names(["lab/tuned", "lab/tuned-more", "base"]))
        assert shorten("lab/tuned-more - lab/tuned") == "tuned-more - tuned"
        assert shorten("ties(lab/tuned)") == "ties(tuned)"
        assert shorten("other/lab/tuned") == "other/lab/tuned"

    def test_no_references_change_nothing(self) -> None:
        assert shortener({})("x - y") == "x - y"


class TestFolderNames:
    def test_a_mark_where_the_last_part_is_not_its_own(self) -> None:
        names = folder_names(["a/one", "b/two@main", "c/same", "d/same", "e/built"], ["built"])
        assert names["a/one"] == "one" and names["b/two@main"] == "two"
        marked = [names[key] for key in ("c/same", "d/same", "e/built")]
        assert len({*marked, "built"}) == 4
        assert [name[:-7] for name in marked] == ["same", "same", "built"]

    def test_each_is_a_slug(self) -> None:
        (name,) = folder_names(["x/$(a b)"], ()).values()
        assert name == slug("$(a b)")


class TestPublicNames:
    def test_short_ones_tell_nothing_of_the_machine(self) -> None:
        names = short_public_names(["/srv/someone/long", "lab/tuned", "lab/long"])
        assert list(names.values()) == ["long", "tuned", "lab/long"]
