"""Other people's transcripts: files that the real libraries wrote, and files that are broken."""

import csv
import gzip
import json
import shutil
import tracemalloc
import zipfile

import pytest
from helpers import DATA, byte_tokenizer, encode
from hypothesis import given
from hypothesis import strategies as st

from stepflow_tl import Trace
from stepflow_tl.errors import SettingError, TraceError
from stepflow_tl.integrations.transcripts import (
    Fields,
    Transcript,
    as_trace,
    export_traces,
    import_transcripts,
    read_transcripts,
    saved_traces,
    traces_of,
)
from stepflow_tl.integrations.transcripts.thought_anchors import FACTS, found_in
from stepflow_tl.models import load_tokenizer
from stepflow_tl.tasks.word_problems import make_problem

WRITTEN = DATA / "transcripts"
OPENAI = WRITTEN / "openai"
ANCHORS = WRITTEN / "thought_anchors"
QUESTION = make_problem(0, 3).question


@pytest.fixture(scope="module")
def reasoner():
    """The tokenizer that the fixtures' model has."""
    return load_tokenizer()


def read(tokenizer, path, **options):
    """What is read of a file: traces, and reasons."""
    found = list(traces_of(tokenizer, path, **options))
    traces = [trace for _, trace in found if trace is not None]
    reasons = [each.reason for each, trace in found if trace is None]
    return traces, reasons


def prompt_of(trace):
    return "".join(trace.token_texts[: trace.prompt_length])


class TestLmEval:
    FILES = WRITTEN / "lm_eval" / "reasoner"

    def _of(self, tokenizer, task):
        (path,) = self.FILES.glob(f"samples_words_{task}_*")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return *read(tokenizer, path), rows

    def test_the_prompt_is_what_the_model_was_given(self, reasoner):
        traces, reasons, rows = self._of(reasoner, "chat")
        assert len(traces) == 2
        for trace, row in zip(traces, rows, strict=False):
            assert prompt_of(trace) == row["arguments"]["gen_args_0"]["arg_0"]
            assert trace.response == row["resps"][0][0]
            assert trace.steps[0].text.strip() == row["doc"]["question"]
            assert trace.closed and len(trace.summary)
            assert trace.metadata["gold"] == row["target"] == trace.answer
            assert trace.metadata["scores"] == {"exact_match": row["exact_match"]}
        assert len(reasons) == 2  # another filter of the same responses
        assert "expected each response once, got that of filter 'boxed'" in reasons[0]

    def test_repeats_are_responses_of_their_own(self, reasoner):
        traces, reasons, rows = self._of(reasoner, "plain")
        assert not reasons
        assert [trace.metadata["sample"] for trace in traces] == [0, 1, 0, 1]
        start = reasoner.bos_token if encode_starts(reasoner) else ""
        assert prompt_of(traces[0]) == start + rows[0]["arguments"]["gen_args_0"]["arg_0"]

    def test_log_likelihoods_are_no_transcripts(self, reasoner):
        traces, reasons, _ = self._of(reasoner, "choice")
        assert not traces
        assert all("expected one of generated text" in reason for reason in reasons)


def encode_starts(tokenizer):
    return tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_lighteval_by_the_models_own_tokens(reasoner):
    (path,) = (WRITTEN / "lighteval" / "reasoner").rglob("*.parquet")
    traces, reasons = read(reasoner, path)
    assert not reasons
    assert [trace.metadata["sample"] for trace in traces] == [0, 1, 0, 1]
    for trace in traces:
        assert trace.steps[0].text.strip().startswith("How many")
        assert trace.answer is None or trace.answer.isdigit()
        assert trace.text.count(reasoner.eos_token) <= 1  # without what the batch was padded with
        assert "avg@n:n=2" in trace.metadata["scores"]
    other = byte_tokenizer(whole_markers=True)
    traces, reasons = read(other, path)
    assert not traces
    assert set(reasons) == {
        "its tokens are another tokenizer's, and there is no prompt beside them: expected the "
        "tokenizer of the model that wrote it"
    }


def test_lighteval_by_messages_and_reasoning(reasoner):
    (path,) = (WRITTEN / "lighteval" / "openai").rglob("*.parquet")
    traces, reasons = read(reasoner, path)
    assert not reasons
    assert len(traces) == 4
    assert all(trace.metadata["gold"] in ("10", "29") for trace in traces)
    assert any(trace.closed and len(trace.thinking) > 20 for trace in traces)


class TestInspect:
    @pytest.mark.parametrize("name", ["words.eval", "words.json"])
    def test_reasoning_is_thinking(self, reasoner, name):
        found = list(traces_of(reasoner, WRITTEN / "inspect" / name))
        assert {each.kind for each, _ in found} == {"inspect"}
        by_id = {(t.metadata["id"], t.metadata["sample"]): t for _, t in found if t is not None}
        if name.endswith(".eval"):
            assert set(by_id) == {("reasoning", 1), ("reasoning", 2), ("error", 1)}
            (reason,) = [each.reason for each, trace in found if trace is None]
            assert "the sample failed (ValueError('no cups left'))" in reason
            trace = by_id["reasoning", 2]
        else:
            assert set(by_id) == {(3, 1), ("inline", 1), ("tool", 1), ("turns", 1)}
            trace = by_id["inline", 1]
            tool = by_id["tool", 1]
            assert "15" in prompt_of(tool)  # what the tool answered, and nobody asked
            assert prompt_of(by_id["turns", 1]).count("<|User|>") == 2
            assert "End with the number." in prompt_of(by_id["turns", 1])
            plain = by_id[3, 1]
            assert plain.closed and not plain.steps_in("thinking")  # an answer without a thinking
            assert plain.steps_in("summary")[0].text.strip() == "Dan has 12 books, so Ivy has 15."
        assert trace.steps_in("thinking")[0].text.strip().endswith("12 for Dan.")
        assert trace.closed and trace.ended
        assert trace.metadata["scores"]["match"] == "C"
        assert trace.metadata["gold"] == "15"

    def test_an_archive_of_an_older_release(self, reasoner, tmp_path):
        """Inspect packed by deflate before it packed by zstandard."""
        samples = json.loads((WRITTEN / "inspect" / "words.json").read_text())["samples"]
        path = tmp_path / "old.eval"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", "{}")
            archive.writestr("samples/../../deep.json", "[" * 100_000)
            for sample in samples:
                archive.writestr(f"samples/{sample['id']}_epoch_1.json", json.dumps(sample))
        traces, reasons = read(reasoner, path)
        assert len(traces) == 4
        assert len(reasons) == 1 and "could not be unpacked" in reasons[0]

    def test_long_texts_are_kept_apart(self, reasoner, tmp_path):
        log = json.loads((WRITTEN / "inspect" / "words.json").read_text())
        sample = log["samples"][1]
        text = sample["messages"][0]["content"]
        sample["messages"][0]["content"] = "attachment://abc"
        sample["attachments"] = {"abc": text}
        (tmp_path / "log.json").write_text(json.dumps(log))
        traces, _ = read(reasoner, tmp_path / "log.json")
        assert text in prompt_of(traces[1])

    def test_damage_costs_one_sample(self, reasoner, tmp_path):
        whole = (WRITTEN / "inspect" / "words.eval").read_bytes()
        with zipfile.ZipFile(WRITTEN / "inspect" / "words.eval") as archive:
            first = next(i for i in archive.infolist() if i.filename.startswith("samples/"))
        at = first.header_offset + 30 + len(first.filename) + first.compress_size // 2
        path = tmp_path / "damaged.eval"
        path.write_bytes(whole[:at] + b"\0\0\0\0\0\0\0\0" + whole[at + 8 :])
        traces, reasons = read(reasoner, path)
        assert len(traces) == 2
        assert sum("could not be unpacked" in reason for reason in reasons) == 1
        path.write_bytes(whole[: len(whole) // 2])
        traces, reasons = read(reasoner, path)
        assert not traces
        assert "expected a log of Inspect's" in reasons[0]


class TestChatCompletions:
    def test_of_openais_client(self, reasoner):
        traces, reasons = read(reasoner, OPENAI / "completions.jsonl")
        rows = [json.loads(line) for line in (OPENAI / "completions.jsonl").open()]
        message = rows[0]["response"]["choices"][0]["message"]
        assert trace_says(traces[0], message["reasoning_content"], message["content"])
        assert traces[0].ended and traces[0].closed
        cut = traces[2]  # finish_reason "length", all of it reasoning
        assert (cut.ended, cut.closed, len(cut.summary)) == (False, False, 0)
        assert any("calls tools" in reason for reason in reasons)
        assert any("got a refusal" in reason for reason in reasons)
        tools = next(t for t in traces if t.metadata["id"] == rows[3]["response"]["id"])
        assert tools.answer or tools.summary
        assert len(traces) + len(reasons) == 7

    def test_as_vllm_serves_them(self, reasoner):
        """Its `reasoning` and `content` give the response back character by character."""
        traces, reasons = read(reasoner, OPENAI / "vllm_completions.jsonl")
        rows = [json.loads(line) for line in (OPENAI / "vllm_completions.jsonl").open()]
        said = rows[0]["response"]["choices"][0]["message"]
        assert traces[0].response == f"{said['reasoning']}</think>{said['content']}"
        assert len(reasons) == 1 and "calls tools" in reasons[0]
        exact = next(r for r in rows if r["response"].get("prompt_token_ids"))
        choice = exact["response"]["choices"][0]
        ids = [*exact["response"]["prompt_token_ids"], *choice["token_ids"]]
        assert ids in [trace.token_ids.tolist() for trace in traces]
        cut = next(t for t in traces if not t.ended and not t.closed)
        assert not len(cut.summary)

    @pytest.mark.parametrize("who", ["", "vllm_"])
    def test_batches(self, reasoner, who):
        output = OPENAI / f"{who}batch_output.jsonl"
        requests = OPENAI / f"{who}batch_input.jsonl"
        traces, reasons = read(reasoner, output, requests=requests)
        asked = {
            row["custom_id"]: row["body"]["messages"][-1]["content"]
            for row in map(json.loads, requests.open())
        }
        assert traces
        for trace in traces:
            assert trace.steps[0].text.strip() == asked[trace.metadata["custom_id"]]
        assert all("got a failed request" in reason for reason in reasons)
        _, reasons = read(reasoner, output)
        assert "expected the file of its requests (--requests FILE)" in reasons[0]

    def test_what_failed_is_named(self, reasoner):
        traces, reasons = read(
            reasoner, OPENAI / "batch_errors.jsonl", requests=OPENAI / "batch_input.jsonl"
        )
        assert not traces
        assert "(status 400): Unsupported value" in reasons[0]
        assert "could not be executed before the completion window" in reasons[1]

    @pytest.mark.parametrize("name", ["bare.jsonl", "completion.json"])
    def test_completions_without_their_requests(self, reasoner, name):
        traces, reasons = read(reasoner, OPENAI / name)
        assert not traces
        assert all("expected the messages that it answers" in reason for reason in reasons)


def trace_says(trace, reasoning, content):
    thinking = "".join(trace.parts.thinking.split())
    answer = "".join(trace.parts.answer.split())
    return (thinking, answer) == ("".join(reasoning.split()), "".join(content.split()))


class TestThoughtAnchors:
    PUBLISHED = ANCHORS / "published" / "correct_base_solution" / "problem_2238"

    def test_sentences_and_labels_are_the_sources(self, reasoner):
        (trace,), reasons = read(reasoner, self.PUBLISHED)
        assert not reasons
        rows = json.loads((self.PUBLISHED / "chunks_labeled.json").read_text())
        steps = trace.steps_in("thinking")
        assert len(steps) == len(rows)
        for step, row in zip(steps, rows, strict=True):
            assert step.text.split() == row["chunk"].split()
            assert step.labels == row
        assert trace.read_as["thinking_cutter"] == "given"
        assert trace.metadata["correct"] is True
        assert trace.steps[0].segment == "question"
        assert trace.answer == "120"

    def test_rollouts_are_responses_of_their_own(self, reasoner):
        traces, reasons = read(reasoner, ANCHORS / "math_rollouts", rollouts=True)
        assert len(traces) == 8
        base, *rollouts = traces
        assert [step.labels["chunk_idx"] for step in base.steps_in("thinking")[:3]] == [0, 1, 2]
        assert {trace.metadata["chunk"] for trace in rollouts} == {0, 1, 2}
        assert all(prompt_of(trace) == prompt_of(base) for trace in rollouts)
        assert len(reasons) == 1 and "the rollout failed" in reasons[0]
        assert len(read(reasoner, ANCHORS / "math_rollouts")[0]) == 1

    @pytest.mark.parametrize("tokenizer", ["reasoner", "other"])
    def test_there_and_back(self, reasoner, tmp_path, tokenizer):
        own = reasoner if tokenizer == "reasoner" else byte_tokenizer(whole_markers=False)
        export_traces(read(own, ANCHORS, rollouts=True)[0], tmp_path, layout="thought-anchors")
        files = {p.relative_to(ANCHORS): p for p in ANCHORS.rglob("*.json")}
        written = {p.relative_to(tmp_path): p for p in tmp_path.rglob("*.json")}
        assert len(written) == len(files)
        for path, original in files.items():
            place = next(p for p in written if path.parts[-len(p.parts) :] == p.parts)
            assert json.loads(written[place].read_text()) == json.loads(original.read_text()), path

    def test_traces_from_elsewhere(self, reasoner, tmp_path):
        traces, _ = read(reasoner, OPENAI / "vllm_completions.jsonl")
        assert export_traces(traces, tmp_path, layout="thought-anchors") == len(traces)
        again, reasons = read(reasoner, tmp_path)
        assert not reasons
        by_text = {trace.text: trace for trace in again}
        for trace in traces:
            other = by_text[trace.text]
            thoughts = [[s.text.strip() for s in t.steps_in("thinking")] for t in (trace, other)]
            assert thoughts[0] == thoughts[1]

    def test_labels_that_were_changed_since_are_written(self, reasoner, tmp_path):
        (trace,), _ = read(reasoner, self.PUBLISHED)
        changed = trace.with_labels({3: {"function_tags": ["unknown"]}})
        export_traces([changed], tmp_path, layout="thought-anchors")
        (path,) = tmp_path.rglob("chunks_labeled.json")
        assert json.loads(path.read_text())[2]["function_tags"] == ["unknown"]

    def test_a_chunk_that_begins_inside_a_token_or_is_not_there_is_kept(self, tmp_path, reasoner):
        folder = tmp_path / "correct_base_solution" / "problem_1"
        folder.mkdir(parents=True)
        base = {"prompt": "Q\n<think>\n", "solution": "It is so. No.\n</think>\n\nYes."}
        rows = [{"chunk": c, "depends_on": []} for c in ("It is so.", "o.", "Never.", "No.")]
        (folder / "base_solution.json").write_text(json.dumps(base))
        (folder / "chunks_labeled.json").write_text(json.dumps(rows))
        (trace,), _ = read(reasoner, folder)
        export_traces([trace], tmp_path / "out", layout="thought-anchors")
        (path,) = (tmp_path / "out").rglob("chunks_labeled.json")
        written = json.loads(path.read_text())
        assert [row["chunk"] for row in written] == ["It is so.", "o.", "Never.", "No."]
        assert trace.metadata[FACTS]["without_a_step"]

    def test_two_models_with_the_same_problem_stay_apart(self, reasoner, tmp_path):
        source = next((ANCHORS / "math_rollouts").rglob("problem_1"))
        for name in ("model_a", "model_b"):
            shutil.copytree(source, tmp_path / name / "correct_base_solution" / "problem_1")
        base = tmp_path / "model_b" / "correct_base_solution" / "problem_1" / "chunk_0"
        (base / "solutions.json").write_text("[]")
        traces, _ = read(reasoner, tmp_path, rollouts=True)
        other = read(reasoner, OPENAI / "vllm_completions.jsonl")[0][0].with_metadata(correct=True)
        out = tmp_path / "out"
        assert export_traces([*traces, other], out, layout="thought-anchors") == 3
        first = json.loads((source / "chunk_0" / "solutions.json").read_text())
        folder = out / "correct_base_solution"
        assert (
            json.loads((folder / "problem_1" / "chunk_0" / "solutions.json").read_text()) == first
        )
        assert not (folder / "problem_1_again" / "chunk_0").exists()
        assert (folder / "problem_1_again" / "chunk_1" / "solutions.json").is_file()

    def test_rollouts_need_their_base(self, reasoner, tmp_path):
        traces, _ = read(reasoner, ANCHORS / "math_rollouts", rollouts=True)
        with pytest.raises(TraceError, match="expected the base solution beside its rollouts"):
            export_traces(traces[1:], tmp_path, layout="thought-anchors")

    def test_hostile_metadata_names_no_place_outside(self, tmp_path, reasoner):
        (trace,), _ = read(reasoner, self.PUBLISHED)
        for place in (
            "../../elsewhere",
            "a/../../problem_1",
            "/etc/problem_1",
            "a/problem_1/../..",
        ):
            hostile = trace.with_metadata(problem=place)
            export_traces([hostile], tmp_path / "out", layout="thought-anchors")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("kept", [3, {}, {"files": {}}, {"rollout": {}}, {"files": {"a": 1}}])
    def test_metadata_that_no_import_left_is_named(self, reasoner, tmp_path, kept):
        (trace,), _ = read(reasoner, self.PUBLISHED)
        with pytest.raises(TraceError, match="of trace 0 as an import left it"):
            export_traces(
                [trace.with_metadata(thought_anchors=kept)], tmp_path, layout="thought-anchors"
            )

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("base_solution.json", "{", "could not be read as JSON"),
            ("base_solution.json", "[]", "expected an object with a prompt"),
            ("base_solution.json", '{"prompt": "Q", "error": "x"}', "expected a solution"),
            ("chunks_labeled.json", "[", "could not be read as JSON"),
            ("chunks_labeled.json", '[{"chunk_idx": 0}]', None),
            ("problem.json", "3", "not laid out as expected"),
        ],
    )
    def test_broken_files_are_named(self, reasoner, tmp_path, name, content, message):
        folder = tmp_path / "correct_base_solution" / "problem_1"
        shutil.copytree(self.PUBLISHED, folder)
        (folder / name).write_text(content)
        shutil.copytree(self.PUBLISHED, tmp_path / "correct_base_solution" / "problem_2")
        traces, reasons = read(reasoner, tmp_path)
        if message is None:
            assert len(traces) == 2
        else:
            assert len(traces) == 1  # the other problem
            assert message in reasons[0]


def test_chunks_are_found_whatever_the_white_space():
    text = "One  two.\n\nThree\u00a0four. One two."
    assert found_in(text, ["One two.", "Three four.", "", "One two.", "Five."]) == [
        *(0, 11, None, 23, None),
    ]


class TestLines:
    def _write(self, path, *rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def test_questions_and_rendered_prompts(self, reasoner, tmp_path):
        rendered = reasoner.apply_chat_template(
            [{"role": "user", "content": QUESTION}], add_generation_prompt=True, tokenize=False
        )
        said = "It is 7.\n</think>\n\n\\boxed{7}"
        path = self._write(
            tmp_path / "rows.jsonl",
            {"prompt": QUESTION, "response": said, "level": 3},
            {"prompt": rendered, "completion": said},
            {"messages": [{"role": "user", "content": QUESTION}], "output": [said, said]},
            {"question": QUESTION, "response": "\\boxed{7}", "reasoning": "It is 7."},
            {"problem": QUESTION, "solution": {"content": "\\boxed{7}", "thinking": "It is 7."}},
        )
        traces, reasons = read(reasoner, path)
        assert not reasons
        assert len(traces) == 6
        assert {prompt_of(trace) for trace in traces} == {rendered}
        assert {trace.response for trace in traces} == {said}
        assert traces[0].metadata["level"] == 3
        assert [t.metadata.get("sample") for t in traces] == [None, None, 0, 1, None, None]

    def test_conversations_whose_last_message_is_the_answer(self, reasoner, tmp_path):
        user = {"role": "user", "content": QUESTION}
        said = {"role": "assistant", "content": "It is 7.\n</think>\n\n\\boxed{7}"}
        apart = {"role": "assistant", "content": "\\boxed{7}", "reasoning_content": "It is 7."}
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": said["content"]}]
        path = self._write(
            tmp_path / "rows.jsonl",
            {"messages": [user, said]},
            {"messages": [user, apart]},
            {"conversations": turns},
        )
        traces, reasons = read(reasoner, path)
        assert not reasons
        assert {trace.response for trace in traces} == {said["content"]}
        assert len({prompt_of(trace) for trace in traces}) == 1

    def test_a_rows_own_fields_are_kept(self, reasoner, tmp_path):
        import pandas as pd

        when = pd.Timestamp("2026-01-02")
        row = {"prompt": QUESTION, "response": "7", "source": "numina", "at": when, "raw": b"x"}
        pd.DataFrame([row]).to_parquet(tmp_path / "rows.parquet")
        done = import_transcripts(reasoner, tmp_path / "rows.parquet", tmp_path / "out")
        assert (done.read, done.unread) == (1, 0)
        (trace,) = saved_traces([tmp_path / "out"])
        assert trace.metadata["source"] == "numina"
        assert trace.metadata["at"].startswith("2026-01-02")

    def test_columns_of_known_data_sets(self, reasoner, tmp_path):
        path = self._write(
            tmp_path / "rows.jsonl",
            {"instruction": "Translate.", "input": "bonjour", "output": "hello"},
            {"instruction": "Translate.", "input": "", "output": "hello"},
            {"question": QUESTION, "generated_text": "It is 5", "answer": "4"},
            {"problem": QUESTION, "solution": "REFERENCE", "generations": ["one", "two"]},
            {
                "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
                "answer": "4",
            },
        )
        traces, reasons = read(reasoner, path)
        assert not reasons
        assert traces[0].steps[0].text.strip() == "Translate.\n\nbonjour"
        assert traces[1].steps[0].text.strip() == "Translate."
        said = [trace.response for trace in traces]
        assert said == ["hello", "hello", "It is 5", "one", "two", "A"]

    def test_an_earlier_import_leaves_nothing_behind(self, reasoner, tmp_path):
        rows = [{"prompt": QUESTION, "response": str(n)} for n in range(3)]
        path = self._write(tmp_path / "rows.jsonl", *rows)
        import_transcripts(reasoner, path, tmp_path / "out")
        self._write(path, rows[0])
        import_transcripts(reasoner, tmp_path, tmp_path / "out")  # its own table is no transcript
        assert [trace.response for trace in saved_traces([tmp_path / "out"])] == ["0"]

    def test_fields_by_name(self, reasoner, tmp_path):
        row = {"in": {"q": QUESTION}, "out": [{"text": "So.\n</think>\n\n7"}], "ok": True}
        path = self._write(tmp_path / "rows.jsonl", row)
        _, reasons = read(reasoner, path)
        assert "expected a prompt under one of ['messages', 'conversations', 'prompt'" in reasons[0]
        assert "prompt= (--prompt)" in reasons[0]
        (trace,), reasons = read(
            reasoner, path, fields=Fields(prompt="in.q", response="out.0.text")
        )
        assert (trace.answer, trace.parts.answer, reasons) == (None, "7", [])
        assert trace.metadata["ok"] is True

    def test_bad_rows_stop_nothing(self, reasoner, tmp_path):
        good = {"prompt": QUESTION, "response": "So.\n</think>\n\n7"}
        path = tmp_path / "rows.jsonl"
        lines = [
            json.dumps(good),
            "{no json",
            json.dumps({"prompt": QUESTION}),
            json.dumps({**good, "response": 7}),
            json.dumps({**good, "response": ""}),
            json.dumps({**good, "prompt": ""}),
            json.dumps({**good, "messages": 3}),
            json.dumps([good]),
            json.dumps([3]),
            json.dumps({**good, "response": "\ud800"}),
            json.dumps({"doc_id": 1, "doc": {}, "arguments": 3, "resps": []}),
            json.dumps({"choices": [{"message": 3}], "messages": []}),
            json.dumps({"epoch": 1, "messages": [3], "output": 3, "target": ""}),
            json.dumps({"custom_id": "x", "response": 3}),
            json.dumps({"layout": "stepflow_tl.trace", "token_ids": "x"}),
            json.dumps({"doc": {}, "model_response": {"text": 3}}),
            "[" * 100_000,
            json.dumps(good),
        ]
        latin = json.dumps({**good, "response": "é"}, ensure_ascii=False).encode("latin-1")
        path.write_bytes(
            "\n".join(lines[:-1]).encode() + b"\n" + latin + b"\n" + lines[-1].encode()
        )
        traces, reasons = read(reasoner, path)
        assert len(traces) == 2
        assert len(reasons) == len(lines) - 1
        assert all(reason and reason.isprintable() for reason in reasons)

    @pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json", "rows.parquet", "rows.csv"])
    def test_files_of_every_kind(self, reasoner, tmp_path, name):
        import pandas as pd

        rows = [{"prompt": QUESTION, "response": f"So.\n</think>\n\n{n}"} for n in range(3)]
        path = tmp_path / name
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows))
        elif name.endswith(".parquet"):
            pd.DataFrame(rows).to_parquet(path)
        else:
            pd.DataFrame(rows).to_csv(path, index=False)
        traces, reasons = read(reasoner, path)
        assert ([trace.parts.answer for trace in traces], reasons) == (["0", "1", "2"], [])
        for cut in (1, path.stat().st_size // 2):  # a file that was cut costs what was cut
            path.write_bytes(path.read_bytes()[:-cut])
            traces, reasons = read(reasoner, path)
            assert len(traces) < 3 or cut == 1
            assert len(traces) < 3 or reasons or name.endswith(".csv")

    def test_a_json_file_that_breaks_off_gives_what_was_whole(self, reasoner, tmp_path):
        rows = [{"prompt": QUESTION, "response": f"So.\n</think>\n\n{n}"} for n in range(3)]
        (tmp_path / "rows.json").write_text(json.dumps(rows)[:-20])
        traces, reasons = read(reasoner, tmp_path / "rows.json")
        assert len(traces) == 2
        assert "rows.json is no JSON" in reasons[0]


class TestExport:
    @pytest.fixture
    def traces(self, reasoner):
        return read(reasoner, WRITTEN, rollouts=True, requests=OPENAI / "batch_input.jsonl")[0]

    def test_a_round_trip_loses_nothing(self, reasoner, traces, tmp_path):
        path = tmp_path / "traces.jsonl"
        assert export_traces(iter(traces), path) == len(traces)
        again, reasons = read(reasoner, path)
        assert not reasons
        assert again == traces
        row = json.loads(path.read_text().splitlines()[0])
        assert row["prompt"] + row["response"] == traces[0].text

    def test_another_tokenizer_gets_the_text_the_steps_and_the_labels(self, traces, tmp_path):
        other = byte_tokenizer(whole_markers=True)
        export_traces(traces, tmp_path / "traces.jsonl")
        again, reasons = read(other, tmp_path / "traces.jsonl")
        assert not reasons
        for mine, theirs in zip(traces, again, strict=True):
            assert theirs.text == mine.text.removesuffix("<|end_of_sentence|>")
            assert (theirs.ended, theirs.metadata) == (mine.ended, mine.metadata)
            for segment in ("thinking", "summary"):
                texts = [
                    [("".join(s.text.split()), s.labels) for s in t.steps_in(segment)]
                    for t in (mine, theirs)
                ]
                assert texts[0] == texts[1]

    def test_an_older_file_stays_where_writing_fails(self, traces, tmp_path):
        path = tmp_path / "traces.jsonl"
        path.write_text("before")

        def broken():
            yield traces[0]
            raise RuntimeError("stopped")

        with pytest.raises(RuntimeError):
            export_traces(broken(), path)
        assert path.read_text() == "before"
        assert [p.name for p in tmp_path.iterdir()] == ["traces.jsonl"]

    def test_no_such_layout(self, tmp_path, unchecked):
        with pytest.raises(SettingError, match="expected layout to be one of"):
            export_traces([], tmp_path / "x", layout="pts")


class TestImport:
    def test_a_folder_of_everything(self, reasoner, tmp_path, capsys):
        done = import_transcripts(reasoner, WRITTEN, tmp_path, rollouts=True, progress=True)
        rows = list(csv.DictReader(done.table.open()))
        assert (done.read, done.unread) == (
            sum(bool(row["trace"]) for row in rows),
            sum(bool(row["reason"]) for row in rows),
        )
        assert len(rows) == done.read + done.unread
        assert {row["kind"] for row in rows} == {
            *("lm-eval", "lighteval", "inspect", "openai", "thought-anchors"),
        }
        traces = list(saved_traces([tmp_path]))
        assert len(traces) == done.read
        for row, trace in zip((r for r in rows if r["trace"]), traces, strict=True):
            assert int(row["tokens"]) == len(trace)
            assert row["answer"] == (trace.answer or "")
            assert trace.metadata["read_from"]["file"] == row["file"]
        assert f"{done.read} traces" in str(done)
        assert "B/s" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.parquet"])
    def test_progress_inside_a_long_file(self, tmp_path, name):
        import pandas as pd

        rows = [{"prompt": QUESTION, "response": str(hash(n)) * 40} for n in range(3000)]
        path = tmp_path / name
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if name.endswith(".parquet"):
            pd.DataFrame(rows).to_parquet(path)
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows))
        else:
            path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
        seen = []
        assert sum(1 for _ in read_transcripts(path, seen=seen.append)) == 3000
        assert seen == sorted(seen)
        assert seen[-1] == path.stat().st_size
        assert any(0.3 < position / seen[-1] < 0.7 for position in seen) or name.endswith(".gz")

    def test_a_folder_that_links_to_itself_is_read_once(self, reasoner, tmp_path):
        (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": QUESTION, "response": "7"}))
        (tmp_path / "self").symlink_to(tmp_path)
        assert len(read(reasoner, tmp_path)[0]) == 1

    def test_a_limit(self, reasoner, tmp_path):
        assert import_transcripts(reasoner, OPENAI, tmp_path, limit=3).table.is_file()
        assert len(list(csv.DictReader((tmp_path / "transcripts.csv").open()))) == 3

    def test_hostile_text_stays_in_its_cell(self, reasoner, tmp_path):
        texts = ['=HYPERLINK("x")', '\x1b[31mred\n,"', "+1+1", "@x", "\u202e\ufeff", "-5"]
        path = tmp_path / "rows.jsonl"
        rows = [
            {"prompt": QUESTION, "response": f"So.\n</think>\n\n\\boxed{{{t}}}", "gold": t}
            for t in texts
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = import_transcripts(reasoner, path, tmp_path / "out")
        table = list(csv.DictReader(done.table.open()))
        assert [row["gold"] for row in table] == [
            *('\'=HYPERLINK("x")', '[31mred ,"', "'+1+1", "'@x", "", "-5"),
        ]

    def test_memory_does_not_grow_with_the_file(self, reasoner, tmp_path):
        row = {
            "prompt": QUESTION,
            "response": "So it is. " * 40 + "\n</think>\n\n7",
            "x": "y" * 20_000,
        }
        peaks = []
        for count in (20, 200):
            path = tmp_path / f"{count}.jsonl"
            path.write_text((json.dumps(row) + "\n") * count)
            tracemalloc.start()
            assert sum(1 for _ in read_transcripts(path)) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]

    def test_what_is_not_there_or_has_another_name(self, reasoner, tmp_path):
        with pytest.raises(FileNotFoundError, match="no transcripts at"):
            import_transcripts(reasoner, tmp_path / "missing", tmp_path / "out")
        with pytest.raises(SettingError, match="expected files of .jsonl"):
            import_transcripts(reasoner, tmp_path, tmp_path / "out")
        (tmp_path / "a.txt").touch()
        with pytest.raises(SettingError, match="expected a file of .jsonl.*got 'a.txt'"):
            import_transcripts(reasoner, tmp_path / "a.txt", tmp_path / "out")
        with pytest.raises(SettingError, match="expected kind to be one of"):
            import_transcripts(reasoner, OPENAI, tmp_path / "out", kind="pickle")
        assert not (tmp_path / "out").exists()


class TestTokens:
    def test_exact_tokens_are_taken_where_they_say_the_text(self, reasoner):
        prompt = encode(reasoner, "Why?<think>\n")
        ids = [encode(reasoner, char)[0] for char in "So it is.\n"] + encode(
            reasoner, "</think>\n\nYes."
        )
        transcript = Transcript(
            prompt="Why?<think>\n",
            rendered=True,
            content="So it is.\n</think>\n\nYes.",
            prompt_ids=prompt,
            token_ids=ids,
        )
        assert as_trace(reasoner, transcript).token_ids.tolist() == prompt + ids
        other = as_trace(byte_tokenizer(whole_markers=True), transcript)
        assert other.response == transcript.content

    @given(st.lists(st.integers(-5, 3000), max_size=12), st.text(max_size=20))
    def test_whatever_ids_come(self, tokenizer, ids, text):
        transcript = Transcript(
            prompt="Why?", rendered=True, content=text + ".", prompt_ids=[1, 2], token_ids=ids
        )
        trace = as_trace(tokenizer, transcript)
        assert isinstance(trace, Trace)
        assert text.strip() in trace.text
