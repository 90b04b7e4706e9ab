import pandas as pd
from pictures import is_drawn

from stepflow_tl.plots import figure_accuracy


def test_accuracy_with_its_intervals():
    table = pd.DataFrame(
        {"problems": ["2", "4"], "a": [0.5, 0.2], "a_low": [0.4, 0.1], "a_high": [0.6, 0.3]}
    )
    assert is_drawn(figure_accuracy(table, names=["a"]))
