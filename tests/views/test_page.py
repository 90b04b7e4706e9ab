"""The page as a person uses it: clicks, keys, links; in a real browser."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hostile import HOSTILE
from made_maps import made_map

from stepflow_tl.errors import SettingError, StepMapError
from stepflow_tl.saliency.tracing import trace_back
from stepflow_tl.traces.trace import Trace
from stepflow_tl.views import Reader, Reading
from stepflow_tl.views.audits import known_audit

TEXTS = ["How many?", "Ken has 2.", "So Cal has 4.", "Then Ray has 6.", r"It is \boxed{6}."]
Open = Callable[..., Any]


def strongest(weights: torch.Tensor, least: float = 0.02) -> list[int]:
    return [int(i) for i in weights.argsort(descending=True) if weights[i] >= least]


def listed(page: Any, title: str) -> list[int]:
    buttons = page.locator(f".list:has(h3:text-is('{title}')) button")
    return [int(button.get_attribute("data-step")) for button in buttons.all()]


def test_a_click_locks_a_step_and_lists_its_links(opened: Open) -> None:
    one = made_map(TEXTS)
    page = opened(Reader.of(one))
    page.click("article[data-step='3']")
    shares = one.normalize("row").scores.mean(0)
    assert listed(page, "looks at") == strongest(shares[3, :3])
    assert listed(page, "is looked at by") == [4]
    assert page.locator("article.locked").get_attribute("data-step") == "3"
    page.hover("article[data-step='1']")
    assert page.locator("article.locked").get_attribute("data-step") == "3"
    source = listed(page, "looks at")[0]
    page.click(".list button >> nth=0")
    assert page.locator("article.locked").get_attribute("data-step") == str(source)
    assert page.locator("path.arc").count() == len(listed(page, "looks at")) + len(
        listed(page, "is looked at by")
    )


def test_hovering_previews(opened: Open) -> None:
    page = opened(Reader.of(made_map(TEXTS)))
    page.hover("article[data-step='2']")
    page.wait_for_selector("article.chosen[data-step='2']")
    assert page.locator("article.locked").count() == 0


def test_it_is_worked_from_the_keyboard(opened: Open) -> None:
    one = made_map(TEXTS)
    page = opened(Reader.of({"made": one, "other": made_map(TEXTS, seed=1)}))
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    page.wait_for_selector("article.locked[data-step='2']")
    source = listed(page, "looks at")[0]
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(f"article.locked[data-step='{source}']")
    page.keyboard.press("b")
    page.wait_for_selector("article.locked[data-step='2']")
    assert page.evaluate("document.activeElement.dataset.step") == "2"
    page.keyboard.press("]")
    page.wait_for_selector("output.layer:text-is('0')")
    page.keyboard.press("m")
    page.wait_for_selector("footer b:text-is('trace, other')")
    assert page.locator("select").first.input_value() == "other"
    page.keyboard.press("/")
    page.keyboard.type("ray")
    page.wait_for_selector(".matches:text-is('1 step')")
    page.keyboard.press("Enter")
    page.wait_for_selector("article.locked[data-step='3'].match")
    page.keyboard.press("Escape")
    page.wait_for_selector("[aria-current=step]", state="detached")


def test_layers_heads_bands_and_shares(opened: Open) -> None:
    one = made_map(TEXTS, heads=2)
    page = opened(Reader.of(one, head_layers=(1,)))
    page.click("article[data-step='4']")

    def weights() -> list[float]:
        return [float(b.inner_text()) for b in page.locator(".list >> nth=0 >> b").all()]

    def expected(scores: torch.Tensor) -> list[float]:
        return sorted(scores[4, :4].tolist(), reverse=True)

    mean = one.mean_over_heads()
    assert weights() == pytest.approx(expected(mean.normalize("row").scores.mean(0)), abs=0.01)
    page.click("button:text-is('shallow')")
    assert weights() == pytest.approx(expected(mean.normalize("row").scores[0]), abs=0.01)
    assert page.locator("#head").is_hidden()
    page.fill("#layer", "1")
    page.select_option("#head", "1")
    head = one.scores[1, 1]
    assert weights() == pytest.approx(expected(head / head.sum(-1, keepdim=True)), abs=0.01)
    page.locator("label:has-text('share of') select").select_option("none")
    assert weights() == pytest.approx(expected(head), abs=0.01)
    page.fill("#threshold", "0.5")
    assert min(weights()) >= 0.5


def test_the_way_back_is_that_of_trace_back(opened: Open) -> None:
    one = made_map(TEXTS)
    page = opened(Reader.of(one))
    page.locator("label:has-text('share of') select").select_option("none")
    page.click("article[data-step='4']")
    page.keyboard.press("t")
    title = "walks back from step 4 pass"
    page.wait_for_selector(f"h3:text-is('{title}')")
    found = [
        float(b.inner_text()) for b in page.locator(f".list:has(h3:text-is('{title}')) b").all()
    ]
    expected = trace_back(one, 4)["through"].sort_values(ascending=False)
    assert listed(page, title) == expected.index.tolist()
    assert found == pytest.approx(expected.tolist(), abs=0.01)


def test_the_map_is_clicked(opened: Open) -> None:
    page = opened(Reader.of(made_map(TEXTS)))
    box = page.locator("canvas").bounding_box()
    pitch = box["width"] / len(TEXTS)
    page.mouse.move(box["x"] + 0.5 * pitch, box["y"] + 2.5 * pitch)
    assert page.locator(".cell").inner_text().startswith("step 2 on step 0: 0.")
    page.mouse.click(box["x"] + 0.5 * pitch, box["y"] + 2.5 * pitch)
    page.wait_for_selector("article.locked[data-step='2']")


def test_before_and_after(opened: Open) -> None:
    before, after = made_map(TEXTS), made_map([*TEXTS[:2], "Else.", *TEXTS[3:]], seed=1)
    page = opened(Reader.of(before, after=after))
    assert page.locator(".text").count() == 2
    assert page.locator(".split").count() == 2
    first = page.locator("article.diverged").first
    assert first.get_attribute("data-step") == "2"
    assert page.locator("#difference").count() == 0


def test_the_difference_of_two_maps_of_the_same_steps(opened: Open) -> None:
    before, after = made_map(TEXTS), made_map(TEXTS, seed=1)
    page = opened(Reader.of(before, after=after))
    assert page.locator(".split").count() == 0
    page.check("#difference")
    box = page.locator("canvas >> nth=1").bounding_box()
    pitch = box["width"] / len(TEXTS)
    page.mouse.move(box["x"] + 0.5 * pitch, box["y"] + 4.5 * pitch)
    expected = after.normalize("row").scores.mean(0) - before.normalize("row").scores.mean(0)
    said = page.locator(".cell >> nth=1").inner_text()
    assert float(said.split(": ")[1]) == pytest.approx(float(expected[4, 0]), abs=0.01)


def test_what_else_is_known(opened: Open) -> None:
    one = made_map(TEXTS)
    page = opened(
        Reader.of(
            one,
            values={"receiver": {2: 0.5, 3: float("nan")}},
            fired=[2],
            ledger=pd.DataFrame({"layer": [1], "rows_changed": [17]}),
            audits={"made": ["AUROC .99"]},
            facts={"answer": "6", "correct": True},
        )
    )
    page.click("article[data-step='2']")
    assert "receiver 0.500" in page.locator(".links h2").inner_text()
    assert "fired" in page.locator(".links h2").inner_text()
    assert "AUROC .99" in page.locator("footer").inner_text()
    assert "answer 6 · correct True" in page.locator(".facts").inner_text()
    page.click("footer summary")
    assert "17" in page.locator("footer table").inner_text()
    page.click("article[data-step='3']")
    assert "receiver" not in page.locator(".links h2").inner_text()


def test_steps_are_colored_by_kind_and_by_value(opened: Open, trace: Trace) -> None:
    kinds = ["premise", "plan", "plan"]
    labels = {n: {"kind": kinds[i % 3]} for i, n in enumerate(range(len(trace.steps)))}
    labeled = trace.with_labels(labels)
    scores = torch.linspace(-1.0, 1.0, len(trace))
    values = {"importance": {1: 0.25, 2: 0.75}}
    page = opened(Reader(Reading(trace=labeled, values=values, token_scores=scores)).page())
    color = page.locator("label:has-text('color') select")
    color.select_option("kind")
    page.wait_for_selector("article.color-1[data-step='0']")  # premise, after plan
    page.wait_for_selector("article.color-0[data-step='1']")
    color.select_option("importance")
    page.wait_for_selector("article.color-none[data-step='0']")
    shares = [
        page.locator(f"article.color-value[data-step='{n}']").evaluate(
            "card => card.style.getPropertyValue('--share')"
        )
        for n in (1, 2)
    ]
    assert shares == ["0", "1"]
    tokens = page.locator("article[data-step='1'] .token")
    step = trace.steps[1]
    assert tokens.count() == len(step)
    assert tokens.all_inner_texts() == list(trace.token_texts[step.start : step.stop])
    shade = float(tokens.first.evaluate("token => token.style.getPropertyValue('--shade')"))
    assert shade == pytest.approx(abs(float(scores[step.start])), abs=1e-3)


def test_a_trace_alone(opened: Open, trace: Trace, tmp_path: Path) -> None:
    page = opened(trace.to_html(tmp_path / "trace.html").read_text())
    assert page.locator("article").count() == len(trace.steps)
    assert page.locator("canvas").count() == 0
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("article.locked[data-step='0']")


def test_a_notebook_shows_it_in_a_frame_of_its_own(chromium: Any, tmp_path: Path) -> None:
    shown = made_map(["How?", HOSTILE[0], HOSTILE[2]]).show()
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><p>a cell</p>{shown._repr_html_()}", encoding="utf-8")
    page = chromium.new_page()
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("article[data-step='2']").click()
    assert frame.locator("article.locked").get_attribute("data-step") == "2"
    assert frame.locator("article[data-step='1'] .body").inner_text() == HOSTILE[0]
    assert page.evaluate("window.pwned") is None
    page.close()


def test_what_was_found_of_a_rule_stands_in_the_foot(opened: Open) -> None:
    made = made_map(TEXTS)
    known = replace(made, settings={"rule": "attention_x_gradient", "pool": "share"})
    page = opened(Reader.of({"known": known}).page())
    assert "premise that a step uses 1.00" in page.locator("footer .audit").inner_text()
    assert known_audit({"rule": "attention_x_gradient", "pool": "mean"}) != known_audit(
        known.settings
    )
    assert known_audit({"rule": "a rule of one's own"}) == ()
    for other in ({"diagonal": "full"}, {"frame_keys": "out"}):  # others than those audited
        assert known_audit({**known.settings, **other}) == ()
    mine = opened(Reader.of({"known": known}, audits={"known": ["mine"]}).page())
    assert mine.locator("footer .audit").all_inner_texts() == ["mine"]


def test_hostile_text_stays_text(opened: Open) -> None:
    one = made_map(["How?", *HOSTILE, "End."])
    page = opened(Reader.of(one, title="</title><script>window.pwned = 1</script>"))
    assert page.evaluate("window.pwned") is None
    assert page.locator("article script, article img, article a, article style").count() == 0
    assert page.locator("article[data-step='1'] .body").inner_text() == HOSTILE[0]
    assert page.locator("article[data-step='8'] .body").inner_text() == "broken ? surrogate"
    for step in range(len(HOSTILE) + 2):
        page.keyboard.press("ArrowDown")
        assert page.locator("article.locked").get_attribute("data-step") == str(step)
    long = page.locator("article[data-step='10']")
    assert long.locator("button.more").inner_text() == "show 994000 more characters"
    long.locator("button.more").click()
    assert page.evaluate("document.querySelectorAll('button.more').length") == 0
    assert page.evaluate("window.pwned") is None


def test_a_script_in_the_page_would_not_run(chromium: Any, tmp_path: Path) -> None:
    """The policy holds even where the escaping would not."""
    path = Reader.of(made_map(TEXTS)).write(tmp_path / "page.html")
    page, said = chromium.new_page(), list[str]()
    page.on("console", lambda one: said.append(one.text))
    page.goto(path.as_uri())
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.pwned = 1";
            document.body.append(script);
        }"""
    )
    assert page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in one for one in said)
    page.close()


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (420, True)])
def test_it_fits_the_window(opened: Open, width: int, dark: bool) -> None:
    page = opened(Reader.of(made_map([f"step {i} " * 20 for i in range(40)])))
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme="dark" if dark else "light")
    page.click("article[data-step='7']")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_map_without_steps_of_a_trace_is_refused() -> None:
    with pytest.raises(SettingError, match="expected a trace or a map to show, got neither"):
        Reader(Reading()).page()
    with pytest.raises(StepMapError, match="expected maps of the same 5 steps, got map 'b' of 4"):
        Reader.of({"a": made_map(TEXTS), "b": made_map(TEXTS[1:])}).page()


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"fired": [9]}, "expected fired steps from 0 to 4, got 9"),
        ({"audits": {"b": ["x"]}}, "expected audits of the maps .'made'., got audits of .'b'."),
        ({"values": {"v": [1.0] * 9}}, "expected values 'v' of steps from 0 to 4, got 9 values"),
        ({"token_scores": torch.zeros(3)}, "a token score for each of the trace's 0 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(known: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Reader.of(made_map(TEXTS), **known).page()
