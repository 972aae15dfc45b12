"""Tokenizer transplants beside mergekit-tokensurgeon: the same rows, but for the last bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from click.testing import CliRunner
from oracle import load_folder, run_shardmerge
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers.tiny_tokenizers import tokenized
from shardmerge.algebra.transplant import DonorTensor, StoredTable, TransplantSpec
from shardmerge.compose.tokenizer.matching import ComparedTokens
from shardmerge.engine.drawn_rows import by_chance
from shardmerge.engine.landmarks import TurnedRows, turned
from shardmerge.engine.poorly_trained import poorly_trained
from shardmerge.engine.pursuit import pursue

NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = {"<s>": True, "</s>": True}
#: Those of the model are called otherwise, and stand elsewhere.
OTHER_SPECIAL = {"<end>": True, "<begin>": True}
OTHER_NAMED = {"bos_token": "<begin>", "eos_token": "<end>"}


def write_models(root: Path, **kinds: Any) -> tuple[Path, Path]:
    """Write a model and a donor of another width, each with tokens that the other lacks."""
    base = {"dtype": torch.float32} | kinds.get("base", {})
    donor = {"dtype": torch.float32, "width": 24} | kinds.get("donor", {})
    model = tokenized(
        root / "model", 0, ("the", "cat", "sat"), OTHER_SPECIAL, **OTHER_NAMED, **base
    )
    words = ("the", "dog", "ran", "big")
    return model, tokenized(root / "donor", 1, words, SPECIAL | {"<new>": False}, **NAMED, **donor)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def theirs(models: tuple[Path, Path], out: Path, *options: str) -> dict[str, torch.Tensor]:
    """Return what mergekit-tokensurgeon makes."""
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.tokensurgeon import main

    LoaderCache().loaders.clear()
    arguments = [str(models[0]), str(models[1]), str(out), "--quiet", *options]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return load_folder(out)


def ours(
    models: tuple[Path, Path], work: Path, approximate: Any, numerics: str = "float32", **keys: Any
) -> dict[str, torch.Tensor]:
    """Return what a recipe makes."""
    document = {
        "name": "out",
        "merge_method": "passthrough",
        "models": [{"model": str(models[0])}],
        "tokenizer": {"source": str(models[1]), "approximate": approximate},
    } | keys
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document, sort_keys=False))
    return run_shardmerge(recipe, work, checked=True, numerics=numerics)["out"]


def assert_close(made: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert sorted(made) == sorted(wanted)
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
@pytest.mark.parametrize(
    ("approximate", "options"),
    [
        ({"method": "omp", "k": 5}, ["-k", "5"]),
        ({"method": "omp", "k": 12}, ["-k", "12", "--batch-size", "2"]),
        ({"method": "common_interpolation", "k": 4}, ["-a", "common_interpolation", "-k", "4"]),
        (
            {"method": "common_interpolation", "k": 3, "cosine_similarity": True},
            ["-a", "common_interpolation", "-k", "3", "-c"],
        ),
        (
            {"method": "common_interpolation", "k": 6, "weight_scheme": "barycentric"},
            ["-a", "common_interpolation", "-k", "6", "-w", "barycentric"],
        ),
        (
            {"method": "common_interpolation", "k": 6, "weight_scheme": "least_squares"},
            ["-a", "common_interpolation", "-k", "6", "-w", "least_squares"],
        ),
        ({"method": "subword"}, ["-a", "subword"]),
        ({"method": "subword", "subword_method": "sum"}, ["-a", "subword", "-s", "sum"]),
        (
            {"method": "subword", "subword_method": "first_last"},
            ["-a", "subword", "-s", "first_last"],
        ),
        ("mean", ["-a", "mean"]),
        ("zero", ["-a", "zero"]),
        (
            {"method": "zero", "prefix_match": "yes", "new_vocab_scale": 0.5},
            ["-a", "zero", "--prefix-match", "yes"],
        ),
        (
            {"method": "omp", "k": 4, "new_vocab_scale": 0.5},
            ["-k", "4", "--new-vocab-scale", "0.5"],
        ),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
)
def test_the_same_rows(
    models: tuple[Path, Path], tmp_path: Path, approximate: Any, options: list[str], numerics: str
) -> None:
    made = ours(models, tmp_path, approximate, numerics)
    assert_close(made, theirs(models, tmp_path / "mergekit", *options))


TABLES = ("model.embed_tokens.weight", "lm_head.weight")
HALF = {"dtype": torch.bfloat16}


class TestTiedEmbeddings:
    """Which tensors there are follows the model, whatever the donor has."""

    OMP: ClassVar = {"method": "omp", "k": 5}

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    def test_a_tied_donor(self, tmp_path: Path, numerics: str) -> None:
        models = write_models(tmp_path, donor={"tied": True})
        made = ours(models, tmp_path, self.OMP, numerics)
        assert_close(made, theirs(models, tmp_path / "mergekit", "-k", "5"))
        assert set(TABLES) <= set(made)

    def test_a_tied_model(self, tmp_path: Path) -> None:
        models = write_models(tmp_path, base={"tied": True})
        made = ours(models, tmp_path, self.OMP)
        assert_close(made, theirs(models, tmp_path / "mergekit", "-k", "5"))
        assert TABLES[1] not in made

    def test_both_tied(self, tmp_path: Path) -> None:
        models = write_models(tmp_path, base={"tied": True}, donor={"tied": True})
        made = ours(models, tmp_path, {"method": "subword"})
        assert_close(made, theirs(models, tmp_path / "mergekit", "-a", "subword"))

    def test_a_tied_model_that_stores_both(self, tmp_path: Path) -> None:
        """They stay equal, though the donor's two tensors differ."""
        models = write_models(tmp_path, base={"tied": True})
        path = models[0] / "model.safetensors"
        tensors = load_file(path)
        save_file(tensors | {TABLES[1]: tensors[TABLES[0]].clone()}, path, {"format": "pt"})
        (models[0] / "model.safetensors.index.json").unlink(missing_ok=True)
        made = ours(models, tmp_path, {"method": "omp", "k": 5})
        assert torch.equal(made[TABLES[0]], made[TABLES[1]])


@pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
def test_bfloat16(tmp_path: Path, numerics: str) -> None:
    """Sums are rounded once, so that rows differ by no more than a unit in the last place."""
    models = write_models(tmp_path, base=HALF, donor=HALF)
    made = ours(models, tmp_path, {"method": "omp", "k": 5}, numerics)
    wanted = theirs(models, tmp_path / "mergekit", "-k", "5")
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=2.0**-7, atol=1e-3, msg=name)


class TestPursuit:
    """Orthogonal matching pursuit beside mergekit's: the same points, the same error."""

    @pytest.mark.parametrize(("count", "width", "k"), [(200, 64, 16), (60, 32, 32), (900, 48, 40)])
    def test_points_and_error(self, count: int, width: int, k: int) -> None:
        from mergekit.tokensurgeon import batch_omp

        random = torch.Generator().manual_seed(count)
        points = torch.randn(count, width, generator=random)
        targets = torch.randn(50, width, generator=random)
        chosen, weights = pursue(targets, points, k)
        theirs_chosen, theirs_weights = batch_omp(targets, points, k)
        shared = min(k, width // 2)  # what is left then is more than rounding
        assert torch.equal(chosen[:, :shared], theirs_chosen[:, :shared])
        errors = [
            (torch.einsum("nk,nkd->nd", w.double(), points[c].double()) - targets).norm(dim=1)
            for c, w in ((chosen, weights), (theirs_chosen, theirs_weights))
        ]
        torch.testing.assert_close(*errors, rtol=1e-3, atol=1e-3)


class TestRandomRows:
    """The distributions of mergekit's rows; every row follows from the seed here."""

    def made(self, models: tuple[Path, Path], work: Path, **how: Any) -> dict[str, torch.Tensor]:
        return ours(models, work, how)

    def new(self, models: tuple[Path, Path], made: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the rows that were made, of both tables."""
        zeros = ours(models, models[0].parent / "zeros", "zero")
        return torch.stack([made[name][~zeros[name].any(dim=1)] for name in TABLES])

    @pytest.fixture(autouse=True)
    def _zeros(self, models: tuple[Path, Path]) -> None:
        (models[0].parent / "zeros").mkdir(exist_ok=True)

    @pytest.mark.parametrize(
        ("how", "options", "deviation"),
        [
            ({"method": "randn"}, ["-a", "randn"], 1.0),
            ({"method": "randn", "new_vocab_scale": 0.02}, ["-a", "randn", "-nvs", "0.02"], 0.02),
            ({"method": "zero", "new_vocab_noise": 0.5}, ["-a", "zero", "-nvn", "0.5"], 0.5),
            (
                {"method": "zero", "new_vocab_noise": 0.5, "new_vocab_scale": 4},
                ["-a", "zero", "-nvn", "0.5", "-nvs", "4"],
                2.0,
            ),
        ],
        ids=lambda value: "-".join(map(str, value)) if isinstance(value, list) else "",
    )
    def test_noise(
        self, models: tuple[Path, Path], tmp_path: Path, how: Any, options: Any, deviation: float
    ) -> None:
        found = {
            "ours": self.made(models, tmp_path, **how),
            "theirs": theirs(models, tmp_path / "mergekit", *options),
        }
        for name, made in found.items():
            rows = self.new(models, made) / deviation
            assert rows.numel() > 200, name
            assert abs(float(rows.mean())) < 4 / rows.numel() ** 0.5, name
            assert abs(float(rows.std()) - 1) < 4 / (2 * rows.numel()) ** 0.5, name

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    @pytest.mark.parametrize(
        "how", [{"method": "omp", "k": 4}, {"method": "subword"}, {"method": "mean"}]
    )
    def test_noise_is_added_to_rows_of_any_method(
        self, models: tuple[Path, Path], tmp_path: Path, how: Any, numerics: str
    ) -> None:
        plain = ours(models, tmp_path, how, numerics)
        noisy = ours(models, tmp_path, how | {"new_vocab_noise": 0.25, "seed": 3}, numerics)
        scaled = how | {"new_vocab_noise": 0.25, "seed": 3, "new_vocab_scale": 2.0}
        twice = ours(models, tmp_path, scaled, numerics)
        for name in TABLES:
            changed = (plain[name] != noisy[name]).any(dim=1)
            noise = (noisy[name] - plain[name])[changed]
            assert 0 < len(noise) < len(changed)
            assert 0.15 < float(noise.std()) < 0.35
            torch.testing.assert_close(twice[name][changed], 2 * noisy[name][changed])
            assert torch.equal(twice[name][~changed], plain[name][~changed])

    @pytest.mark.parametrize("method", ["randn", "john_hewitt"])
    def test_rows_follow_from_the_seed(
        self, models: tuple[Path, Path], tmp_path: Path, method: str
    ) -> None:
        def made(seed: int) -> torch.Tensor:
            return self.new(models, self.made(models, tmp_path, method=method, seed=seed))

        first, again, other = made(1), made(1), made(2)
        assert torch.equal(first, again)
        assert not (first == other).any()
        assert not (first[0] == first[1]).any()  # the two tables have streams of their own

    @pytest.mark.parametrize("method", ["randn", "john_hewitt"])
    def test_tied_tables_stay_equal(self, tmp_path: Path, method: str) -> None:
        models = write_models(tmp_path, base={"tied": True})
        path = models[0] / "model.safetensors"
        tensors = load_file(path)
        save_file(tensors | {TABLES[1]: tensors[TABLES[0]].clone()}, path, {"format": "pt"})
        made = ours(models, tmp_path, method)
        assert torch.equal(made[TABLES[0]], made[TABLES[1]])

    def test_drawn_rows_have_mean_and_covariance_of_the_models(self) -> None:
        from mergekit.scripts.tokensurgeon import john_hewitt_init

        random = torch.Generator().manual_seed(0)
        own = torch.randn(300, 6, generator=random) @ torch.randn(6, 6, generator=random) + 3.0
        stream = ("stage", "embedding", "model")
        spec = TransplantSpec(method="john_hewitt", count=20000, most=64, limit=300, stream=stream)
        terms = by_chance(spec)
        used = torch.where(terms.rows < 0, 0, terms.rows).long()
        made = own.mean(dim=0) + torch.einsum("nk,nkd->nd", terms.weights, own[used])
        torch.manual_seed(0)
        for rows in (made, john_hewitt_init(own, 20000)):
            scale = float(own.std())
            torch.testing.assert_close(rows.mean(0), own.mean(0), rtol=0, atol=0.05 * scale)
            torch.testing.assert_close(
                torch.cov(rows.T), torch.cov(own.T, correction=0), rtol=0, atol=0.06 * scale**2
            )
            whitened = (rows - rows.mean(0)) / rows.std(dim=0)
            # normal numbers: 3; the tails of a few terms are a little longer
            assert 2.8 < float(whitened.pow(4).mean()) < 3.3


class TestLandmarks:
    """Rows by a rotation of shared tokens' rows, and how mergekit's differ."""

    SPEC: ClassVar = {"identity": "sha256:0", "tensor": "w", "dtype": "F32"}

    def made(self, points: torch.Tensor, own: torch.Tensor, shared: int, work: Path) -> TurnedRows:
        """Return all points turned to the axes of a model that has the first ones."""
        for name, table in (("donor", points), ("model", own)):
            save_file({"w": table.contiguous()}, work / name)
        donor, table = (self.SPEC | {"shape": tuple(one.shape)} for one in (points, own))
        rows = f"0+{len(points)}"
        spec = TransplantSpec(
            method="landmark_pca", count=len(points), most=0, limit=len(own), own=f"0+{shared}",
            donor=DonorTensor(**donor, shared=f"0+{shared}", targets=rows),
            table=StoredTable(**table),
        )  # fmt: skip
        return turned(spec, [work / "donor", work / "model"])

    @pytest.mark.parametrize(("width", "other"), [(8, 8), (8, 12)])
    def test_a_turned_donor_is_found(self, tmp_path: Path, width: int, other: int) -> None:
        """The model is the donor, turned, moved, and perhaps written in more axes."""
        random = torch.Generator().manual_seed(3)
        points = torch.randn(60, width, generator=random)
        frame, _ = torch.linalg.qr(torch.randn(other, other, generator=random))
        own = points @ frame[:width] + 0.25
        made = self.made(points, own[:40], 40, tmp_path)
        torch.testing.assert_close(made.rows, own, rtol=1e-5, atol=1e-5)
        assert made.error < 1e-6

    def test_the_rotation_is_that_of_least_squares(self, tmp_path: Path) -> None:
        from mergekit.tokensurgeon import landmark_pca_approximate

        random = torch.Generator().manual_seed(1)
        points = torch.randn(300, 8, generator=random) * torch.linspace(1, 3, 8)
        turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=random))
        own = points @ turn * torch.tensor([3.0, 1, 2, 0.5, 1, 2, 3, 1])
        own += 0.3 * torch.randn(300, 8, generator=random) + 1.0
        made = self.made(points, own, 300, tmp_path)
        here, there = points - points.mean(0), own - own.mean(0)
        left, _, right = torch.linalg.svd(here.T @ there)
        best = here @ (left @ right) + own.mean(0)
        torch.testing.assert_close(made.rows, best, rtol=1e-4, atol=1e-4)
        missed = [
            float((rows - own).norm() / there.norm())
            for rows in (made.rows, landmark_pca_approximate(points, points, own))
        ]
        assert missed[0] == pytest.approx(made.error, rel=1e-5)
        assert missed[1] > 1.5 * missed[0]  # mergekit turns the other way

    @pytest.mark.parametrize("numerics", ["float32", "mergekit-0.1.5"])
    @pytest.mark.parametrize("kinds", [{}, {"base": HALF, "donor": HALF}, {"donor": {"width": 8}}])
    def test_shared_tokens_keep_their_rows(
        self, tmp_path: Path, kinds: dict[str, Any], numerics: str
    ) -> None:
        models = write_models(tmp_path, **kinds)
        how = {"method": "landmark_pca", "new_vocab_scale": 0.5, "new_vocab_noise": 0.1}
        made = ours(models, tmp_path, how, numerics)
        zeros = ours(models, tmp_path, "zero", numerics)
        for name in TABLES:
            own = zeros[name].any(dim=1)
            assert torch.equal(made[name][own], zeros[name][own])
            assert made[name][~own].isfinite().all() and made[name][~own].any(dim=1).all()


class TestDivergences:
    """What mergekit 0.1.5 does otherwise than its own help and comments say."""

    def test_parts_are_weighted_from_the_other_end(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """An input embedding is to be led by the last part, an output embedding by the first."""
        how = {"method": "subword", "subword_method": "weighted_mean"}
        made = ours(models, tmp_path, how)
        other = theirs(models, tmp_path / "mergekit", "-a", "subword", "-s", "weighted_mean")
        ids = AutoTokenizer.from_pretrained(models[1]).get_vocab()
        own = AutoTokenizer.from_pretrained(models[0])
        before = load_folder(models[0])
        parts = own("dog", add_special_tokens=False)["input_ids"]
        rising = torch.arange(1.0, len(parts) + 1)
        for name, weights in zip(TABLES, (rising, rising.flip(0)), strict=True):
            led = (weights[:, None] * before[name][parts]).sum(0) / weights.sum()
            torch.testing.assert_close(made[name][ids["dog"]], led)
            led = (weights.flip(0)[:, None] * before[name][parts]).sum(0) / weights.sum()
            torch.testing.assert_close(other[name][ids["dog"]], led)

    @pytest.mark.parametrize("where", ["embed", "lm_head"])
    def test_matches_of_one_tensor_are_made_in_the_other(
        self, models: tuple[Path, Path], tmp_path: Path, where: str
    ) -> None:
        made = ours(models, tmp_path, {"method": "zero", "prefix_match": where})
        other = theirs(models, tmp_path / "mergekit", "-a", "zero", "--prefix-match", where)
        row = AutoTokenizer.from_pretrained(models[1]).get_vocab()["dog"]
        named = dict(zip(TABLES, ("embed", "lm_head"), strict=True))
        for name in TABLES:
            assert bool(made[name][row].any()) == (named[name] == where)
            assert bool(other[name][row].any()) != (named[name] == where)

    def test_drawn_rows_of_few_tokens_end_with_an_error(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        """Fewer tokens than the width of a row have no covariance that mergekit can use."""
        models = write_models(tmp_path, base={"width": 64})
        with pytest.raises(TypeError):
            theirs(models, tmp_path / "mergekit", "-a", "john_hewitt")
        assert all(t.isfinite().all() for t in ours(models, tmp_path, "john_hewitt").values())

    @pytest.mark.parametrize("option", ["-nvs", "-nvn"])
    def test_a_scaled_mean_ends_with_an_error(
        self, models: tuple[Path, Path], tmp_path: Path, option: str
    ) -> None:
        with pytest.raises(RuntimeError):
            theirs(models, tmp_path / "mergekit", "-a", "mean", option, "0.5")
        made = ours(models, tmp_path, {"method": "mean", "new_vocab_scale": 0.5})
        own, row = load_folder(models[0]), AutoTokenizer.from_pretrained(models[1]).get_vocab()
        for name in TABLES:
            torch.testing.assert_close(made[name][row["dog"]], own[name].mean(dim=0) * 0.5)

    def test_rows_turned_by_positions_end_with_an_error(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(AttributeError, match="rope_theta"):
            theirs(models, tmp_path / "mergekit", "-a", "mp_rope", "-k", "5")

    def test_sparse_token_basis_ends_with_an_error(
        self, models: tuple[Path, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(TypeError):
            theirs(models, tmp_path / "mergekit", "-a", "stb")


class TestHardlyTrainedTokens:
    def test_which_they_are(self) -> None:
        """As mergekit finds them: short rows, and rows like those that no text reaches."""
        from mergekit.tokensurgeon import well_trained_tokens

        random = torch.Generator().manual_seed(5)
        tables = [torch.randn(600, 32, generator=random) for _ in range(2)]
        for table in tables:
            table[[7, 8, 9, 300]] = 0.05 * torch.randn(4, 32, generator=random) + 2.0
        tables[0][40] *= 1e-3
        vocabulary = {f"t{i}": i for i in range(600) if i not in (7, 8)} | {
            "<|reserved_special_token_1|>": 9
        }
        del vocabulary["t9"]
        unused = ComparedTokens(vocabulary, {}, 600).unused
        assert unused == [7, 8, 9]
        for heads in ([tables[1]], []):
            well = well_trained_tokens(vocabulary, tables[0], *(heads or [None]))
            poor = poorly_trained([tables[0], *heads], unused, tied=not heads)
            assert {300}.issubset(poor) and (40 in poor) == bool(heads)
            assert {vocabulary[token] for token in well} == set(vocabulary.values()) - poor

    def test_they_make_no_others(self, models: tuple[Path, Path], tmp_path: Path) -> None:
        """The model's shortest row is that of a shared token, which keeps it."""
        shortest = int(load_folder(models[0])[TABLES[0]].norm(dim=1).argmin())
        for magikarp in (False, True):
            ours(models, tmp_path, {"method": "omp", "k": 12, "magikarp": magikarp})
            folder = tmp_path / "results" / "transplants"
            found = {path: load_file(path)["rows"] for path in folder.iterdir()}
            assert any(shortest in rows for rows in found.values()) != magikarp
            for path in found:
                path.unlink()
