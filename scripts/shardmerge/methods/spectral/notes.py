"""What kernels note of their decompositions for a check: products with random vectors."""

from __future__ import annotations

import numpy as np
import torch

from shardmerge.methods.contract import Recorded
from shardmerge.methods.kernels.probes import sign_vectors, to_words


class Notes:
    """Notes of one matrix of a tensor, in the order in which they are taken.

    Args:
        name: Of the tensor.
        matrix: Number of the matrix in it.
        shape: Of the matrix.
        device: Where it lies.
    """

    def __init__(
        self, name: str, matrix: int, shape: torch.Size, device: torch.device | str
    ) -> None:
        self.left, self._right = (
            torch.from_numpy(one).to(device) for one in sign_vectors(name, matrix, shape)
        )
        self._taken: list[np.ndarray] = []

    def vector(self, *vectors: torch.Tensor) -> None:
        """Note vectors."""
        self._taken += [vector.cpu().numpy() for vector in vectors]

    def projected(self, vector: torch.Tensor) -> None:
        """Note the projection of the left random vector, before all else."""
        self._taken.insert(0, vector.cpu().numpy())

    def spectrum(self, left: torch.Tensor, values: torch.Tensor, right: torch.Tensor) -> None:
        """Note all singular values of a matrix, and products of its singular vectors."""
        self.vector(values, left.t() @ self.left, right.t() @ self._right)

    def nearest(
        self, left: torch.Tensor, values: torch.Tensor, made: torch.Tensor, side: str
    ) -> None:
        """Note of some vectors their singular values and the nearest orthonormal matrix.

        Args:
            left: Left singular vectors of the vectors.
            values: Their singular values.
            made: The nearest orthonormal matrix.
            side: Whether they are ``left`` or ``right`` vectors of task matrices.
        """
        chance = self.left if side == "left" else self._right
        self.vector(values, left.t() @ chance, made.t() @ chance)

    def merged(self, made: torch.Tensor) -> None:
        """Note products of the merged matrix."""
        self.vector(made.t() @ self.left, made @ self._right)

    def texts(self, code: str) -> list[str]:
        """Return what was noted, as text in a type."""
        return [to_words(vector, code) for vector in self._taken]


class Recorder:
    """Collects what is recorded of a tensor.

    Args:
        places: Indices of the sampled elements, ascending.
        code: Of the type that the tensor is rounded to.
    """

    def __init__(self, places: np.ndarray, code: str) -> None:
        self._places, self._code = places, code
        self._elements: list[np.ndarray] = []
        self._matrices: list[list[str]] = []

    def add(self, made: torch.Tensor, first: int, notes: Notes | None) -> None:
        """Take a matrix of the tensor before it is rounded, and notes of it.

        Args:
            made: The matrix.
            first: Index of its first element.
            notes: None if it was not decomposed.
        """
        flat = made.reshape(-1)
        inside = self._places[(self._places >= first) & (self._places < first + len(flat))]
        chosen = torch.from_numpy(inside - first).to(flat.device)
        self._elements.append(flat[chosen].cpu().numpy())
        if notes:
            notes.merged(made)
        self._matrices.append(notes.texts(self._code) if notes else [])

    def result(self) -> Recorded:
        """Return what was collected."""
        return Recorded(to_words(np.concatenate(self._elements), self._code), self._matrices)
