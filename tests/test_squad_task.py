"""SQuAD as a task: trains, scores, shares its encoder, writes the official files."""

import json
import math

import numpy as np
import pytest
import torch

from minbert import squad
from minbert.checks.engine import randomise
from minbert.pretrained import hf_name
from minbert.run import device, loop, recipes
from minbert.run import squad_task
from minbert.run.data_pairs import load_squad
from minbert.run.squad_task import SquadTask, piece_scores, span_metrics, span_scores, window_batch
from minbert.run.windows import WindowSettings, make_windows
from minbert.squad import Answer, Question

TINY = dict(weights="scratch", init="random", data="builtin", layers=1, hidden_size=32, heads=2, intermediate_size=32,
            vocab_size=700, max_length=384, lr=1e-3, dropout=0.0, precision="fp32")
CPU = device.choose("cpu", "fp32")


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    return SquadTask.alone(recipes.make(**TINY), progress=False)


def test_it_says_what_it_trains_on(task):
    assert task.data["train"] | {"sha256": ""} == {"file": "squad-train-v2.0.json", "examples": 225, "questions": 225,
                                                   "answerable": 150, "sha256": ""}
    assert task.data["dev"]["questions"] == 75 and task.data["dev_nothing"] == pytest.approx(1 / 3)
    assert len(task.train_ids) == 225 and len(task.example_ids) == 225 and task.notes == []
    assert task.example_ids[0] == load_squad("train").questions[0].id
    assert task.train_ids[3].tolist() == task.windows[3].ids
    assert json.loads(json.dumps(task.about()))["spans"] == {"window_length": 384, "question_length": 64, "window_step": 128,
                                                              "answer_length": 30}


def test_a_batch_is_its_windows(task):
    batch = task.batch([0, 50, 100], step=7)
    width = batch["input_ids"].shape[1]
    for row, w in enumerate([0, 50, 100]):
        window = task.windows[w]
        rest = [0] * (width - len(window.ids))
        assert batch["input_ids"][row].tolist() == window.ids + rest
        assert batch["attention_mask"][row].tolist() == [1] * len(window.ids) + rest
        assert batch["token_type_ids"][row].tolist() == window.types + rest
        assert (batch["starts"][row], batch["ends"][row]) == (window.start, window.end)
    assert task.answers(batch) == 3 and all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_it_learns_and_scores_and_keeps_its_answers(tmp_path):
    torch.manual_seed(0)
    task = SquadTask.alone(recipes.make(**TINY), progress=False)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    losses = []
    for step in range(15):
        loss, right, count = loop.training_step(task, task.batch(list(range(8)), step), optimizer, CPU, clip=1.0)
        losses.append(loss)
    assert count == 8 and 0 <= int(right) <= 8 and losses[-1] < 0.7 * losses[0]
    metrics = task.evaluate(CPU)
    said = metrics.pop("predictions")
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["best_f1"] >= max(metrics["f1"], 1 / 3 - 1e-9)
    assert {"loss", "accuracy", "em", "f1", "has_em", "has_f1", "none_em", "none_f1", "threshold", "best_f1", "best_em",
            "best_has_f1", "best_none_f1", "pieces_em", "pieces_f1"} <= set(metrics)
    assert metrics["f1"] == pytest.approx(squad.squad_scores(task.questions, said)["f1"] / 100)
    task.finish(tmp_path)
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()}
    assert set(files) == {"predictions", "null_odds", "spans"} and files["predictions"] == said
    ids = [q.id for q in task.questions]
    assert list(files["null_odds"]) == ids and list(files["spans"]) == ids
    assert all((said[i] == "") == (files["null_odds"][i] > 0) for i in ids if files["spans"][i])
    contexts = {q.id: q.context for q in task.questions}
    assert all(text in contexts[i] for i, text in files["spans"].items())


def test_without_an_evaluation_before_it_still_finishes(task, tmp_path):
    task.arithmetic = None                                               # a run that was resumed after its last epoch
    task.finish(tmp_path)
    assert set(json.loads((tmp_path / "predictions.json").read_text())) == {q.id for q in task.questions}


def test_tasks_that_are_given_the_same_start_share_the_encoder(task):
    data = load_squad("dev")
    other = SquadTask(task.config, task.start, train=data, dev=data, progress=False)
    assert other.model.encoder is task.model.encoder and other.model.head is not task.model.head
    third = SquadTask(task.config, task.start, model=task.model, train=data, dev=data, progress=False)
    assert third.model is task.model


def test_micro_batches_add_up_to_the_whole(task):
    batch = task.batch(list(range(6)), 0)
    losses = []
    for rows in (0, 4):
        task.model.zero_grad()
        losses.append((loop.forward_backward(task, batch, CPU, rows)[0], task.model.head.weight.grad.clone()))
    (whole, gradient), (parts, added) = losses
    assert whole == pytest.approx(parts, abs=1e-5) and torch.allclose(gradient, added, atol=1e-6)
    task.model.zero_grad()


def test_scores_come_back_in_order_whatever_the_batches(task):
    few = make_windows(task.tokenizer, task.questions[:7], WindowSettings(64, 16, 20))
    task.model.train()
    starts, ends = span_scores(task.model, few, CPU, batch_size=2)
    assert task.model.training and len(starts) == len(few)
    task.model.eval()
    for w in range(len(few)):
        batch = window_batch([w], few)
        with torch.no_grad():
            s, e = task.model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        assert np.allclose(starts[w], s[0], atol=1e-5) and np.allclose(ends[w], e[0], atol=1e-5)
    assert span_scores(task.model, make_windows(task.tokenizer, []), CPU) == ([], [])


def test_what_is_frozen_stays_and_rows_that_do_not_occur_too():
    task = SquadTask.alone(recipes.make(**TINY | {"freeze": "full", "embedding_rows": "all", "dropout": 0.5}), progress=False)
    assert [name for name, p in task.model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    task.model.train()
    assert not task.model.encoder.training and task.model.training
    rows = SquadTask.alone(recipes.make(**TINY | {"embedding_rows": "occurring"}), progress=False)
    occurring = len(set(rows.windows.arrays["ids"].tolist()) | {0})
    assert rows.model.encoder.embeddings.word.weight.shape[0] == occurring


@pytest.mark.parametrize("settings, message", [
    (dict(last_layer="cls"), "give --last-layer all"), (dict(max_length=128), "longer than the model's 128 positions"),
])
def test_settings_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SquadTask.alone(recipes.make(**TINY | settings), progress=False)


def test_an_answer_that_is_not_at_its_offset_stops_the_run_with_its_id(task):
    data = load_squad("dev")
    data.questions[4] = Question("q-bad", "Who?", "Nobody.", (("Somebody", 0),))
    with pytest.raises(ValueError, match="question q-bad: its answer 'Somebody' is not at character 0"):
        SquadTask(task.config, task.start, train=data, dev=data, progress=False)


# ---- scores ------------------------------------------------------------------------------------------------------

QUESTIONS = [Question("a", "q", "old rye", (("old rye", 0),)), Question("b", "q", "c"), Question("c", "q", "x y", (("x", 0),))]


def test_the_metrics_by_hand():
    answers = [Answer("rye", 4, 5.0, 1.0, []), Answer("c", 0, 1.0, -4.0, []), Answer("x", 0, 1.0, 4.0, [])]
    # τ = 0: rye (F1 2/3, EM 0), c (wrong), "" (wrong). The odds are -4, -5, 3: answering all three is best.
    assert span_metrics(QUESTIONS, answers) == pytest.approx(dict(
        em=0, f1=2 / 9, has_em=0, has_f1=1 / 3, none_em=0, none_f1=0, threshold=3.0,
        best_em=1 / 3, best_f1=5 / 9, best_has_em=1 / 2, best_has_f1=5 / 6, best_none_em=0, best_none_f1=0))


@pytest.mark.parametrize("threshold, expected", [(-math.inf, -3.0), (math.inf, 5.0), (1.5, 1.5)])
def test_a_threshold_without_a_number_gets_one_that_chooses_the_same(threshold, expected):
    answers = [Answer("x", 0, 0.0, odds, []) for odds in (-2.0, 5.0)] + [Answer("", 0, -math.inf, 0.0, [])]
    found = squad_task.finite_threshold(threshold, answers)
    assert found == expected
    said = [[a.text and a.odds <= t for a in answers] for t in (threshold, found)]
    assert [bool(x) for x in said[0]] == [bool(x) for x in said[1]]


def test_scoring_word_pieces_forgives_what_the_tokenizer_loses(task):
    context = "The mill-race froze in 1820."
    questions = [Question("a", "q", context, (("mill-race", 4),)), Question("b", "q", context)]
    said = {"a": "race", "b": ""}
    official = squad.squad_scores(questions, said)
    assert official["HasAns_f1"] == 0                                    # "millrace" and "race" share no word
    assert piece_scores(task.tokenizer, questions, said)["pieces_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert piece_scores(task.tokenizer, questions, {"a": "mill-race", "b": "The"}) == {"pieces_em": 1.0, "pieces_f1": 1.0}


def test_logits_and_loss_of_a_padded_batch_equal_hugging_faces(task):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    start = task.start.shape
    ours = randomise(squad.SpanExtractor(type(task.start.encoder)(task.start.encoder.config)), 0).double().eval()
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(
        vocab_size=start["vocab_size"], hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=start["max_positions"])).double().eval()
    named = {"bert." + hf_name(n.removeprefix("encoder.")): p for n, p in ours.named_parameters() if n.startswith("encoder.")}
    named |= {"qa_outputs.weight": ours.head.weight, "qa_outputs.bias": ours.head.bias}
    assert not theirs.load_state_dict(named, strict=False).missing_keys
    batch = task.batch([0, 40, 80, 120], 0)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    assert (batch["attention_mask"] == 0).any() and (batch["token_type_ids"] == 1).any() and (batch["starts"] > 0).any()
    real = batch["attention_mask"] == 1
    with torch.no_grad():
        mine, expected = ours(**inputs), theirs(**inputs)
        for scores, logits in zip(mine, (expected.start_logits, expected.end_logits)):
            assert (scores - logits)[real].abs().max() < 1e-9
        # Hugging Face's loss counts padding as a possible place. Row by row, without padding, the two are the same number.
        total = squad.span_loss(*mine, batch["starts"], batch["ends"])
        rows = []
        for row in range(4):
            length = int(real[row].sum())
            one = {key: tensor[row:row + 1, :length] for key, tensor in inputs.items()}
            places = {"start_positions": batch["starts"][row:row + 1], "end_positions": batch["ends"][row:row + 1]}
            rows.append(theirs(**one, **places).loss.item())
    assert total.item() == pytest.approx(np.mean(rows), abs=1e-9)
