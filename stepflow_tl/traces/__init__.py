"""Traces: a response is read once, token by token, into segments and steps.

A prompt is rendered (`chat`, `templates`), the response goes through one reader (`reader`), which
knows how models write their reasoning (`formats`) and where a step begins (`cutters`, or somebody
else's `cuts`); what is read becomes a `Trace` (`trace`) with its answer (`answers`). While a model
runs, the readers of a batch are its `rows`.
"""
