"""`minbert ask` and `minbert evaluate squad`: answers with their exact place, official scores, one line for every fault."""

import json

import numpy as np
import pytest
import torch

from minbert import squad
from minbert.run import build, checkpoint, cli, device, loop, recipes, squad_task
from minbert.run.data_pairs import load_squad
from minbert.run.squad_task import SquadTask

TINY = dict(weights="scratch", init="random", data="builtin", layers=1, hidden_size=16, heads=2, intermediate_size=16,
            vocab_size=300, max_length=128, lr=1e-3, dropout=0.0, precision="fp32", recipe="squad")


def minbert(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory, as the training loop leaves it; the model is a tiny one that has learned nothing."""
    torch.manual_seed(0)
    config = recipes.make(**TINY, task="squad", window_length=128, question_length=32, window_step=40, answer_length=10)
    task = SquadTask.alone(config, progress=False)
    directory = tmp_path_factory.mktemp("runs") / "squad" / "small-scratch-builtin-fp32-0"
    directory.mkdir(parents=True)
    metrics = task.evaluate(device.choose("cpu", "fp32"))
    metrics.pop("predictions")
    checkpoint.save(directory / "best-001.safetensors", task.model.state_dict(),
                    {"config": recipes.public(config), **task.about(), "epoch": 1, "metrics": {"dev": metrics}})
    (directory / "tokenizer.json").write_text(task.tokenizer.to_str(), encoding="utf-8")
    task.finish(directory)
    return directory


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, text):
    with open(name, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    return name


# ---- the model comes back ----------------------------------------------------------------------------------------

def test_the_model_comes_back_as_it_was(run):
    model, tokenizer, meta = build.load_span_model(run)
    tensors, _ = checkpoint.load(build.best_checkpoint(run))
    assert not model.training and all(torch.equal(t, tensors[name]) for name, t in model.state_dict().items())
    assert meta["spans"]["window_step"] == 40 and tokenizer.token_to_id("[CLS]") is not None


@pytest.mark.parametrize("adapt", ["none", "lora"])
def test_the_parts_of_a_model_for_several_tasks_come_back(tmp_path, adapt):
    config = recipes.make(**{**recipes.SMOKE, "size": "smoke", "task": "sst+quora+squad", "adapt": adapt, "epochs": 1})
    result = loop.train(config, out=tmp_path / "run", progress=False, device="cpu")
    spans, tokenizer, _ = build.load_span_model(tmp_path / "run")
    classifier, _, meta = build.load_classifier(tmp_path / "run")
    ids, mask = torch.tensor([tokenizer.encode("The mill is old.").ids]), None
    mask = torch.ones_like(ids)
    for name, model, inputs in (("squad", spans, (ids, mask, torch.zeros_like(ids))), ("sst", classifier, (ids, mask))):
        result.task.choose(name)
        result.task.model.eval()
        with torch.no_grad():
            expected, found = result.task.model(name, *inputs), model(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(expected, found))
        assert "encoder.embeddings.word.weight" in model.state_dict()       # it can be moved to a GPU on its own
    assert len(meta["label_names"]) == 5
    with pytest.raises(checkpoint.CheckpointError, match="no classes of 'sts' in it, only of sst"):
        build.load_classifier(tmp_path / "run", "sts")


def test_a_model_of_another_kind_is_refused_by_what_to_do(run, tmp_path):
    tensors, meta = checkpoint.load(build.best_checkpoint(run))
    meta.pop("spans")
    checkpoint.save(tmp_path / "best-001.safetensors", tensors, meta)
    with pytest.raises(checkpoint.CheckpointError, match="answers no questions: train one by 'minbert run squad'"):
        build.load_span_model(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="has no classes: use 'minbert ask'"):
        build.load_classifier(run)


# ---- ask ---------------------------------------------------------------------------------------------------------

CONTEXT = "The mill is old.\r\nשלום עולם 🙂🙂 e\u0301mile ground\trye in 1803.\n\nIt burned.\n"


def test_every_answer_is_where_it_says(run, capsys):
    write("mill.txt", "\ufeff" + CONTEXT)
    assert minbert("ask", "--checkpoint", run, "--context", "mill.txt", "--json", "--threshold", "1e9", "--others", "5",
                   "Who ground rye?", "When?", "מי?") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["question"] for f in found] == ["Who ground rye?", "When?", "מי?"]
    for f in found:
        assert f["answer"] and f["answer"] == CONTEXT[f["begin"]:f["end"]]
        assert CONTEXT.split("\n")[f["line"] - 1][f["column"] - 1:].startswith(f["answer"].split("\n")[0])
        assert 0 <= f["none_probability"] <= 1 and f["threshold"] == 1e9 and len(f["others"]) == 5
        assert all(CONTEXT[o["begin"]:].startswith(o["text"]) and o["score"] <= f["score"] for o in f["others"])


def test_below_the_threshold_there_is_no_answer(run, capsys):
    write("mill.txt", CONTEXT)
    assert minbert("ask", "--runs", run.parent.parent, "--context", "mill.txt", "--threshold=-1e9", "Who?") == 0
    out, err = capsys.readouterr()
    assert out.startswith("Who?\n  no answer   (none 0.") and "nearest:" in out and str(run) in err
    assert minbert("ask", "--checkpoint", run, "--context", "mill.txt", "--threshold", "1e9", "--others", "1", "Who?") == 0
    out = capsys.readouterr().out
    assert "no answer" not in out and ", score " in out and "    or  " in out and "line " in out


def test_the_threshold_is_the_one_that_was_best_on_dev(run, capsys):
    write("mill.txt", CONTEXT)
    minbert("ask", "--checkpoint", run, "--context", "mill.txt", "--json", "Who?")
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == build.load_span_model(run)[2]["metrics"]["dev"]["threshold"]
    assert (found["answer"] == "") == (found["none_score"] - found["score"] > found["threshold"])


def test_a_text_of_20000_words_is_read_whole(run, capsys, monkeypatch):
    words = ["word", "mill", "old"] * 6667
    write("long.txt", "\n".join(" ".join(words[i:i + 12]) for i in range(0, len(words), 12)))

    def prefer_the_end(model, windows, arithmetic, **_):               # a model that likes the text's last piece
        last = len(windows.arrays["bounds"]) - 1
        starts = [np.zeros(length, dtype=np.float32) for length in windows.lengths]
        for w, start in enumerate(starts):
            place = last - windows.arrays["place"][w] + windows.arrays["first"][w]
            if place < len(start) - 1:
                start[place] = 9
        return starts, starts

    monkeypatch.setattr(squad_task, "span_scores", prefer_the_end)
    assert minbert("ask", "--checkpoint", run, "--context", "long.txt", "--json", "--threshold", "1e9", "Which?") == 0
    found = json.loads(capsys.readouterr().out)
    text = open("long.txt", encoding="utf-8").read()
    assert found["end"] == len(text) and text[found["begin"]:] == found["answer"] and found["line"] == text.count("\n") + 1


def test_the_probability_of_none_by_hand():
    answer = squad.Answer("x", 0, np.log(3.0), np.log(2.0), [("y", 1, 0.0), ("z", 2, -np.inf)])
    assert answer.none_probability == pytest.approx(2 / (3 + 2 + 1))
    assert squad.Answer("", 0, -np.inf, 1.0, []).none_probability == 1.0
    assert squad.Answer("x", 0, 1e4, -1e4, []).none_probability == 0.0


@pytest.mark.parametrize("content, arguments, message", [
    (None, ["Who?"], "no.txt: the context can't be read (No such file or directory)"),
    (b"a\nb \xff", ["Who?"], "no.txt:2: the byte 0xff is not UTF-8"),
    (b" \n", ["Who?"], "no.txt: there is no text in it"),
    (b"text", ["Who?", "  "], "question 2 has no text"),
    (b"text", ["Who?", "--checkpoint", "nowhere"], "nowhere: no such directory"),
    (b"text", ["Who?"], "run 'minbert run squad' first"),
])
def test_what_can_not_be_asked_is_said_in_one_line(tmp_path, capsys, content, arguments, message):
    if content is not None:
        (tmp_path / "no.txt").write_bytes(content)
    assert minbert("ask", "--context", "no.txt", *arguments) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


# ---- evaluate squad ----------------------------------------------------------------------------------------------

DEV = load_squad("dev").questions


def predicted(**changes):
    said = {q.id: q.answers[0][0] if q.answers else "" for q in DEV} | changes
    return write("p.json", json.dumps({name: text for name, text in said.items() if text is not None}))


def test_right_answers_score_100_and_none_the_share_of_none(capsys):
    predicted()
    assert minbert("evaluate", "squad", "--predictions", "p.json", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == {"exact": 100.0, "f1": 100.0, "total": 75, "HasAns_exact": 100.0, "HasAns_f1": 100.0, "HasAns_total": 50,
                      "NoAns_exact": 100.0, "NoAns_f1": 100.0, "NoAns_total": 25}
    predicted(**{q.id: "" for q in DEV})
    assert minbert("evaluate", "squad", "--predictions", "p.json") == 0
    out = capsys.readouterr().out
    assert "all               75   EM  33.33   F1  33.33" in out and "answerable        50   EM   0.00" in out


def test_odds_find_the_best_threshold_and_a_given_one_is_applied(capsys):
    predicted(**{q.id: "wrong" for q in DEV if not q.answers})
    odds = {q.id: -1.5 if q.answers else 2.5 for q in DEV}
    write("o.json", json.dumps(odds))
    assert minbert("evaluate", "squad", "--predictions", "p.json", "--null-odds", "o.json", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["exact"] == pytest.approx(200 / 3) and scores["best_exact"] == 100 and scores["best_f1_thresh"] == -1.5
    assert minbert("evaluate", "squad", "--predictions", "p.json", "--null-odds", "o.json", "--threshold", "0") == 0
    out = capsys.readouterr().out
    assert "all               75   EM 100.00" in out and "best F1       100.00   at τ = -1.50" in out


def test_a_run_answers_for_itself_and_its_files_say_the_same(run, capsys):
    assert minbert("evaluate", "squad", "--checkpoint", run, "--json", "--out", "out.json") == 0
    own = json.loads(capsys.readouterr().out)
    kept = json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    assert json.loads(open("out.json", encoding="utf-8").read()) == kept
    assert minbert("evaluate", "squad", "--predictions", run / "spans.json", "--null-odds", run / "null_odds.json",
                   "--threshold", "0", "--json") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(own)


def test_questions_of_any_file_in_the_format(tmp_path, capsys):
    tree = {"data": [{"paragraphs": [{"context": "Old rye.", "qas": [
        {"id": "x", "question": "What?", "answers": [{"text": "rye", "answer_start": 4}]}]}]}]}
    write("own.json", json.dumps(tree))
    write("p.json", '{"x": "the rye"}')
    assert minbert("evaluate", "squad", "--predictions", "p.json", "--data", "own.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["exact"] == 100


FIRST = DEV[0].id


@pytest.mark.parametrize("content, message", [
    (lambda: predicted(**{FIRST: None}), f"p.json: nothing for {FIRST} (1 of 75)"),
    (lambda: predicted(zebra="x", yak="y"), "p.json: unknown questions: zebra, yak (2 of 77)"),
    (lambda: predicted(**{FIRST: 3}), f"p.json: question {FIRST}: 3 is no text"),
    (lambda: write("p.json", '{"a": "x",\n "b": }'), "p.json:2: malformed JSON"),
    (lambda: write("p.json", '["x"]'), "this is a list"),
    (lambda: write("p.json", '{"a": "x", "a": "y"}'), "p.json: question a is there twice"),
    (lambda: None, "p.json: the file can't be read"),
])
def test_predictions_that_can_not_be_scored_are_named(capsys, content, message):
    content()
    assert minbert("evaluate", "squad", "--predictions", "p.json") == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (["squad", "--predictions", "p.json", "--threshold", "1"], "--threshold needs the odds of no answer"),
    (["squad", "--null-odds", "o.json"], "--null-odds goes with --predictions"),
    (["squad", "--predictions", "p.json", "--null-odds", "o.json"], "o.json: nothing for"),
    (["squad", "--predictions", "p.json", "--null-odds", "n.json"], "'x' is no number"),
    (["squad", "--predictions", "p.json", "--null-odds", "nan.json"], "nan is no number"),
    (["--predictions", "p.json"], "minbert evaluate squad --predictions"), (["--json"], "minbert evaluate squad --json"),
])
def test_options_that_do_not_go_together_are_said(capsys, arguments, message):
    predicted()
    write("o.json", "{}")
    write("n.json", json.dumps({q.id: "x" for q in DEV}))
    write("nan.json", '{"a": NaN}')
    assert minbert("evaluate", *arguments) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_threshold_that_is_no_number_is_a_wrong_command_line(capsys):
    with pytest.raises(SystemExit):
        minbert("evaluate", "squad", "--threshold", "nan")
    assert "'nan' is not a number" in capsys.readouterr().err
