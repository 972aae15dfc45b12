"""mergekit 0.1.5's methods bit by bit: kernels, and sums as steps."""
