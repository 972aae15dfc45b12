"""The methods that sparsify, weigh or elect task vectors; importing registers them.

``sparsified`` and ``consensus`` declare; ``passes`` and ``keep`` compute in float32 numerics,
``mergekit`` has the bits of mergekit 0.1.5.
"""

from shardmerge.methods.task_vectors import consensus, sparsified

__all__ = ["consensus", "sparsified"]
