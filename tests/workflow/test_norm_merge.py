"""Norms merged by ratios, measured: on the donor of the demo, and where norms moved far.

resources/demo/README.md tells what comes out: no difference on the demo, whose fine-tunes hardly
move the norms; sums do better where fine-tunes moved nothing but the norms.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import load_folder, run_shardmerge
from test_demo_effect import MODELS, accuracy, model
from torch.nn.utils import parametrize
from workflow_helpers import DEMO_NAME, demo, scores

from shardmerge.demo import checkpoint, training

pytestmark = pytest.mark.slow

DONOR = f"_{DEMO_NAME}"


class TestDemoDonor:
    """The donor, built by name, benchmarked by lm-eval with and without."""

    def test_both_donors_have_both_skills(self, tmp_path: Path) -> None:
        benchmark = {
            "models": ["merged"],
            "tasks": ["demo_B", "demo_C", "demo_copy"],
            "include_path": "config/tasks/demo",
            "batch_size": 64,
            "per": "model",
        }
        found, norms = {}, {}
        for kind in ("arithmetic", "geometric"):
            project = demo(tmp_path / kind, stages=[DONOR], norm_merge=kind, benchmark=benchmark)
            project.build("benchmarks")
            found[kind] = scores(project, DONOR)
            tensors = load_folder(project.folder / "results" / DONOR / "model")
            norms[kind] = {k: v.float() for k, v in tensors.items() if "norm" in k}
        assert found["arithmetic"] == found["geometric"]
        assert min(found["geometric"].values()) >= 0.95
        # The norms are others, but by less than a thousandth.
        relative = {
            name: float((norms["geometric"][name] / value - 1).abs().max())
            for name, value in norms["arithmetic"].items()
        }
        assert 0 < max(relative.values()) < 1e-3


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
    fast = training.Member(
        member.task, course, member.seed_offset, member.shard_size, member.config
    )
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
        recipe = tmp_path / "donor.yaml"
        recipe.write_text(
            f"name: donor\nmerge_method: task_arithmetic\nbase_model: {MODELS / 'llama2-tiny'}\n"
            f"models:\n  - model: {tuned[0]}\n  - model: {tuned[1]}\n"
            "parameters: {weight: 1}\ndtype: float16\n"
        )
        found = {}
        for kind in ("arithmetic", "geometric"):
            weights = run_shardmerge(recipe, tmp_path, norm_merge=kind, results=kind)["donor"]
            donor = type(model("llama2-tiny"))(model("llama2-tiny").config).float().eval()
            donor.load_state_dict({k: v.float() for k, v in weights.items()})
            found[kind] = {task: accuracy(donor, task) for task in "BCK"}
        assert found["arithmetic"]["B"] >= 0.6 and found["arithmetic"]["C"] >= 0.9
        for task in "BC":
            assert found["geometric"][task] <= found["arithmetic"][task] - 0.2
