"""What is read in a browser: one file, offline, safe to show anybody's text in.

* ``reading``: what a page shows of a trace; ``mathematics``: its text, with formulas as MathML;
* ``packing``: numbers and texts as a page carries them;
* ``reader``: the page itself; ``sweep_page``: a table that opens one for each answer of a sweep;
* ``saved``: readers of files.
"""

from stepflow_tl.views.reader import Reader
from stepflow_tl.views.reading import Reading
from stepflow_tl.views.saved import read_files, read_sweep
from stepflow_tl.views.sweep_page import SweepPage

__all__ = ["Reader", "Reading", "SweepPage", "read_files", "read_sweep"]
