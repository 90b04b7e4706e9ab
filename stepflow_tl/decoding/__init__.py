"""Decoding: prompts in, traces out, under whatever interventions are attached.

In reading order: `generation` (`generate` and the loop that drives the model), `budget` (a limit on
the thinking), `stopping` (texts that end an answer).
"""
