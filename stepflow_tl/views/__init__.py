"""What is read in a browser: one file, offline, safe to show anybody's text in.

* ``reading``: what a page shows of a trace; ``mathematics``: its text, with formulas as MathML;
* ``audits``: what is known of a map's rule; ``packing``: numbers and texts as a page carries them;
* ``reader``: the page itself; ``contents``: a table whose lines each open one, as of a sweep;
* ``saved``: readers of files.
"""

from stepflow_tl.views.contents import Contents
from stepflow_tl.views.reader import Reader
from stepflow_tl.views.reading import Reading
from stepflow_tl.views.saved import read_files, read_sweep

__all__ = ["Contents", "Reader", "Reading", "read_files", "read_sweep"]
