"""How the bundled reasoner was trained: `python -m experiments.reasoner.train`, from the root.

Sentences of the world become lessons (`lessons`), a tokenizer is built from them (`tokenizer`), the
network learns (`model`, `train`), and what it can do is measured (`evaluate`). From the finished
weights `lock_in` trains a model organism of Shallow Lock-in, which `lock_in_doses` measures.
"""
