"""Other people's tools, which may be missing: only the module of one imports it.

`lm_eval` runs lm-evaluation-harness's tasks under a StepFlow (its settings: `settings`);
`grade_file` grades what other models wrote, and holds it against their scores; `transcripts` makes
traces of what they wrote.
"""
