"""What people look at: the plan as text and table, coefficients, norms, benchmarks, times.

Everything here is a pure function of plans, descriptions of builds, and job records. Plots need
matplotlib, which is imported when the first one is drawn.
"""
