"""What Step-Saliency costs against the length of a trace: the parts of ``benchmarks/saliency.py``.

``workload`` and ``measure`` need nothing but the standard library when imported, because the peers
in environments of their own use them too.
"""
