"""What kernels of several methods compute with: blocks, sums, functions, random numbers, ranks.

Not imported until a kernel runs, since it needs torch.
"""
