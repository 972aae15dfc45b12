"""What is asked of compressed-tensors: how a scheme stores a matrix, and what configs say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shardmerge.base.errors import UserError
from shardmerge.export.schemes import ExportScheme
from shardmerge.export.selection import Selection

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme


def library_scheme(scheme: ExportScheme) -> QuantizationScheme:
    """Return a scheme as compressed-tensors has it.

    Raises:
        UserError: If the library is not installed.
    """
    try:
        from compressed_tensors.quantization import preset_name_to_scheme
    except ImportError as error:
        raise UserError(
            f"needs the package compressed-tensors, which cannot be imported ({error})",
            "exports.compressed",
            "Run `make env-compressed`, or install requirements-compressed.txt.",
        ) from None
    made = preset_name_to_scheme(scheme.preset, ["Linear"])
    if scheme.grouped:
        made.weights.group_size = scheme.columns
    return made


def library_version() -> dict[str, str]:
    """Return what tells which compressed-tensors it is."""
    from importlib.metadata import version

    return {"compressed-tensors": version("compressed-tensors")}


def compress(
    weight: torch.Tensor, scheme: ExportScheme, shared: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return what is stored of a weight, by the ending of its name.

    Args:
        weight: Of a linear layer.
        scheme: How it is quantised.
        shared: Largest magnitudes of weights that have the same overall scale.
    """
    import torch
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization import initialize_module_for_quantization
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    with torch.no_grad():
        own = library_scheme(scheme)
        rows, columns = weight.shape
        module = torch.nn.Linear(columns, rows, bias=False, device="meta", dtype=weight.dtype)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
        initialize_module_for_quantization(module, own, force_zero_point=False)
        low, high = _range(weight, own.weights)
        overall = None
        if scheme.shared:
            largest = torch.stack([-low.min(), high.max(), *shared]).max().reshape(1)
            overall = generate_gparam(-largest, largest)
            module.weight_global_scale.copy_(overall)
        scales, zeros = calculate_qparams(low, high, own.weights, global_scale=overall)
        module.weight_scale.copy_(scales)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.copy_(zeros)
        compress_module(module)
        return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def _range(weight: torch.Tensor, how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest and the largest value of all that shares a scale."""
    from compressed_tensors.quantization.utils import maybe_pad_tensor_for_block_quant

    if how.strategy == "channel":
        parts = weight.unsqueeze(-2)
    elif how.strategy == "block":
        height, width = how.block_structure
        padded = maybe_pad_tensor_for_block_quant(weight, how.block_structure)
        blocks = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))
        parts = blocks.transpose(1, 2).flatten(-2)
    else:
        parts = weight.unflatten(-1, (-1, how.group_size))
    return parts.amin(-1), parts.amax(-1)


def quantization_config(scheme: ExportScheme, selection: Selection) -> dict[str, Any]:
    """Return what config.json says of an export, as llm-compressor writes it.

    Args:
        scheme: How weights are quantised.
        selection: Which are.
    """
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
    from torch.nn import Linear

    own = library_scheme(scheme)
    own.format = infer_module_format(Linear, own)
    made = QuantizationConfig(
        config_groups={"group_0": own},
        ignore=list(selection.ignore),
        quantization_status=QuantizationStatus.COMPRESSED,
        format=own.format.value,
    )
    versions = {"version": library_version()["compressed-tensors"]}
    return made.model_dump(mode="json") | {"quant_method": "compressed-tensors"} | versions
