"""CircuitsVis views in notebooks: no network, and hostile tokens stay text."""

import html
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from stepflow_tl.plots.notebook import Offline

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"</iframe>',
    "<img src=x onerror=alert(2)>",
    "<think>",
    "a\u2028\\u003cb&lt;",
]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))


@pytest.fixture(params=["tokens", "attention"])
def shown(request):
    cv = pytest.importorskip("circuitsvis")
    count = len(HOSTILE)
    if request.param == "tokens":
        return Offline(cv.tokens.colored_tokens(HOSTILE, torch.arange(count).float()), height=120)
    pattern = torch.full((2, count, count), 0.25).tril()
    return Offline(cv.attention.attention_heads(pattern, HOSTILE), height=120)


def test_the_notebook_sees_one_frame_and_nothing_of_the_page_in_it(shown):
    ((tag, attributes),) = Tags(shown._repr_html_()).seen
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"  # neither the notebook's origin nor dialogs
    assert attributes["height"] == "120"
    assert attributes["srcdoc"] == shown.page


def test_hostile_tokens_end_no_script_and_make_no_tag(shown):
    tags = [tag for tag, _ in Tags(shown.page).seen]
    assert tags == ["html", "head", "meta", "meta", "body", "div", "script"]
    assert shown.page.lower().count("</script") == 1
    data = shown.page[shown.page.rindex("CircuitsVis.render(") :]
    assert "<" not in data.replace("</script></body></html>", "")


def test_the_texts_are_all_there_with_another_sign_for_less_than(shown):
    data = shown.page[shown.page.rindex("CircuitsVis.render(") :]
    tokens = json.loads(re.search(r'"tokens": (\[.*?"\])', data).group(1))
    assert tokens == [token.replace("<", "‹") for token in HOSTILE]


def test_nothing_is_loaded_from_anywhere(shown):
    assert "default-src 'none'" in shown.page
    assert not any("src" in attributes for _, attributes in Tags(shown.page).seen)
    assert "unpkg" not in html.unescape(shown._repr_html_())


def test_a_page_of_another_layout_is_refused():
    view = SimpleNamespace(local_src="<p>not a view</p>")
    with pytest.raises(ValueError, match="expected the source of a CircuitsVis view, got '<p>not"):
        _ = Offline(view).page
