"""What the merge methods compute: float32 kernels, and the bit-exact ones of mergekit 0.1.5.

Not imported until a kernel runs, since it needs torch.
"""
