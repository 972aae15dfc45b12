"""Many merges from one recipe with gaps: which points are tried, what they say, whose weights stay.

A sweep is static: all its trials are known when the plan is made, and each is a recipe of its own,
built and measured as any other model. ``sweeps.read_sweeps`` makes ``Sweep`` objects of the
configuration: it asks ``space`` for points and ``template`` for recipes. When trials are measured,
``results`` reads their scores, ``best`` tells which are the best, ``weights`` removes what is not
kept and builds again what is, ``tables`` writes all down. ``forecast`` tells a sweep beforehand.

A search that chooses its points by what was measured is a driver above this room. It needs no part
of it changed: with ``sampler: list`` a sweep's points are a file that the driver writes, a run of
the workflow measures those that are new, and ``results.read_points`` (or trials.json) tells the
driver what came out. A trial's name is made from its recipe, so none is measured twice.
"""
