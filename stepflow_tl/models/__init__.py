"""Models: loading them, and one view of whatever class they are of.

`load_model` makes a `TransformerBridge`; everything above asks `view` what it needs of a model, and
knows no class of models. In reading order: `loading` (with `hub`: what can go wrong there),
`view`, `huggingface` (decoders from inside), `layers` (how layers are named), `context`,
`precision`, `memory`, `weights`.
"""
