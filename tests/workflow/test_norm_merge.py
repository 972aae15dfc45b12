"""Norms merged by ratios, measured: where they repair a merge, make no difference, and do harm.

resources/demo/README.md has the figures. Ratios are right where a norm was rescaled and what reads
it with it; they make no difference where norms hardly moved; sums do better where two fine-tunes
moved nothing but the norms, and far.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from oracle import load_folder, run_shardmerge
from test_demo_effect import MODELS, accuracy, model
from torch.nn.utils import parametrize

from helpers.workflow import Project, demo, scores
from tools.demo import checkpoint, skills, training

pytestmark = pytest.mark.slow

KINDS = ("arithmetic", "geometric")
TUNED = "midnight-norms-tiny"
SMOOTHED, PLAIN = "miqu-smooth-tiny", "miqu-tiny"


def donors(recipient: Path, tuned: Path, work: Path) -> dict[str, torch.nn.Module]:
    """Return task arithmetic of two fine-tunes of the demo's base by kind of ``norm_merge``."""
    work.mkdir(exist_ok=True)
    recipe = work / "donor.yaml"
    recipe.write_text(
        f"name: donor\nmerge_method: task_arithmetic\nbase_model: {MODELS / 'llama2-tiny'}\n"
        f"models:\n  - model: {recipient}\n  - model: {tuned}\n"
        "parameters: {weight: 1}\ndtype: float16\n"
    )
    made = {}
    for kind in KINDS:
        weights = run_shardmerge(recipe, work, norm_merge=kind, results=kind)["donor"]
        made[kind] = type(model("llama2-tiny"))(model("llama2-tiny").config).float().eval()
        made[kind].load_state_dict({k: v.float() for k, v in weights.items()})
    return made


@cache
def texts() -> torch.Tensor:
    rows = [row for task in "KRNBC" for row in skills.questions(task)]
    return torch.tensor([training.encode(f"{r['prompt']}{r['answer']}.") for r in rows])


@torch.inference_mode()
def apart(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """Return the largest difference of two models' logits on all tasks."""
    logits = [m(input_ids=texts()).logits for m in (one, other)]
    return float((logits[0] - logits[1]).abs().max())


class TestSmoothedRecipient:
    """``config/norms.yaml``: SmoothQuant moved a factor from each norm into what reads it."""

    @pytest.fixture(scope="class")
    def built(self, tmp_path_factory: pytest.TempPathFactory) -> Project:
        project = demo(tmp_path_factory.mktemp("norms") / "d", "norms-tiny.yaml", "norms.yaml")
        path = project.folder / "cfg.yaml"
        config = path.read_text().replace("  - sources\n", "")  # accuracy() tells theirs
        names = "".join(re.findall(r"^  - norms-.*\n", config, re.MULTILINE))
        path.write_text(config.replace(names, "  - merged\n"))
        project.build("benchmarks")  # each in a table of its own
        path.write_text(config)
        project.build("benchmarks")  # nothing is measured anew, but the tables are others
        return project

    def test_smoothing_kept_the_function_and_moved_the_norms(self) -> None:
        assert apart(model(SMOOTHED), model(PLAIN)) < 0.05
        weights, plain = (load_folder(MODELS / name) for name in (SMOOTHED, PLAIN))
        factors = [weights[k].float() / plain[k].float() for k in plain if "layernorm" in k]
        assert max(float(factor.max()) for factor in factors) < 0.5

    def test_sums_break_the_merge_and_ratios_repair_it(self, built: Project) -> None:
        found = scores(built, "norms-by-ratios-tiny")
        assert found == scores(built, "norms-added-tiny")  # one table, as both are named for it
        for task in ("B", "C", "copy", "reverse", "next"):
            by_ratios = found["norms-by-ratios-tiny", f"demo_{task}"]
            assert by_ratios >= 0.95, task
            assert found["norms-added-tiny", f"demo_{task}"] <= by_ratios - 0.2, task
        for task in ("demo_C", "demo_copy"):
            assert found["norms-added-tiny", task] <= 0.6
        assert {name for name, _ in found} == {"norms-by-ratios-tiny", "norms-added-tiny"}
        assert accuracy(model(SMOOTHED), "B") <= 0.6
        assert accuracy(model(TUNED), "C") <= 0.8

    def test_ratios_do_not_see_the_smoothing(self, tmp_path: Path) -> None:
        smoothed = donors(MODELS / SMOOTHED, MODELS / TUNED, tmp_path / "smoothed")
        plain = donors(MODELS / PLAIN, MODELS / TUNED, tmp_path / "plain")
        assert apart(smoothed["geometric"], plain["geometric"]) < 0.2
        assert apart(smoothed["arithmetic"], plain["arithmetic"]) > 5
        assert min(accuracy(plain["arithmetic"], task) for task in "BCK") >= 0.95

    def test_a_fine_tune_of_all_weights_is_neither_broken_nor_exact(self, tmp_path: Path) -> None:
        """What it adds to the projections is not rescaled, whatever is done with the norms."""
        smoothed = donors(MODELS / SMOOTHED, MODELS / "midnight-tiny", tmp_path / "smoothed")
        plain = donors(MODELS / PLAIN, MODELS / "midnight-tiny", tmp_path / "plain")
        for kind in KINDS:
            assert min(accuracy(smoothed[kind], task) for task in "BCK") >= 0.9
            assert apart(smoothed[kind], plain[kind]) > 1


class TestDemoDonor:
    """The flagship's donor: its fine-tunes hardly move the norms."""

    def test_both_donors_have_both_skills(self, tmp_path: Path) -> None:
        found = donors(MODELS / PLAIN, MODELS / "midnight-tiny", tmp_path)
        for kind in KINDS:
            assert min(accuracy(found[kind], task) for task in "BCK") >= 0.95
        # The norms are others, but by less than a thousandth.
        sums, ratios = (found[kind].state_dict() for kind in KINDS)
        relative = [float((ratios[k] / sums[k] - 1).abs().max()) for k in sums if "norm" in k]
        assert 0 < max(relative) < 1e-3


class _Scaled(torch.nn.Module):
    """A norm's scale as the base's times the exponential of what is trained: it keeps its sign."""

    def __init__(self, base: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("base", base.detach().clone())

    def forward(self, logarithm: torch.Tensor) -> torch.Tensor:
        return self.base * logarithm.exp()

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight / self.base).log()


def tune_norms(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train nothing but the norms of the demo's base on a fine-tune's skill; return its folder."""
    member = training.FAMILY[name]
    course = training.Course(100, 0.2)
    fast = replace(member, course=course)
    monkeypatch.setattr(training, "FAMILY", {**training.FAMILY, name: fast})
    tuned = type(model("llama2-tiny"))(training.model_config(name)).float()
    tuned.load_state_dict(model("llama2-tiny").state_dict())
    tuned.requires_grad_(False)
    layers = [module for key, module in tuned.named_modules() if key.endswith("norm")]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _Scaled(layer.weight))
        layer.parametrizations.weight.original.requires_grad_(True)
    training._teach(name, tuned, 0, lambda text: None)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
    checkpoint.save_model(name, tuned, folder / name)
    return folder / name


class TestNormsThatMovedFar:
    """Fine-tunes of the demo's base that changed the norms only, each element by a factor."""

    def test_sums_do_better(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.set_num_threads(1)
        names = ("midnight-tiny", "miqu-tiny")
        tuned = [tune_norms(name, tmp_path, monkeypatch) for name in names]
        ratios = []
        for folder in tuned:
            made, base = load_folder(folder), load_folder(MODELS / "llama2-tiny")
            factors = [made[k].float() / base[k].float() for k in base if "norm" in k]
            assert all(bool((factor > 0).all()) for factor in factors)
            ratios += [float(factor.min()) for factor in factors]
            ratios += [float(factor.max()) for factor in factors]
        assert min(ratios) < 0.3 and max(ratios) > 3
        made = donors(*reversed(tuned), tmp_path)
        found = {kind: {task: accuracy(made[kind], task) for task in "BC"} for kind in KINDS}
        assert found["arithmetic"]["B"] >= 0.6 and found["arithmetic"]["C"] >= 0.9
        for task in "BC":
            assert found["geometric"][task] <= found["arithmetic"][task] - 0.2
