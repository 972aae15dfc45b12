"""Many merges from one recipe with gaps: which points are tried, what they say, whose weights stay.

A sweep is static: all its trials are known when the plan is made, and each is a recipe of its own,
built and measured as any other model. ``configured.read_sweeps`` makes ``Sweep`` objects of the
configuration: it asks ``points`` for points and ``template`` for recipes. When trials are measured,
``best`` reads their scores and tells which are the best, ``weights`` removes what is not kept and
builds again what is, ``tables`` writes all down. ``forecast`` tells a sweep beforehand.

A search chooses its points by what was measured, generation by generation. ``search`` asks optuna
for them and tells it what came out; ``search_plan`` says what a search is about, ``samplers`` what
each of optuna's samplers is given. It sees results through functions, and what it knows is in
``searched``, from which ``configured`` takes the trials. A trial's name is made from its recipe, so
none is measured twice.
"""
