"""The benchmarks beside sentence-transformers and peft: their gates, what they measure, and what is recorded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import adapters, finetune, pairs
from minbert.bert import BertConfig, BertModel
from minbert.pretrained import save_pretrained
from minbert.run.data import load_task
from minbert.tokens import train_wordpiece

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny BERT with a vocabulary of its own, as a directory."""
    torch.manual_seed(0)
    tokenizer = train_wordpiece(load_task("sst", "train", "builtin").texts, vocab_size=400)
    model = BertModel(BertConfig(tokenizer.get_vocab_size(), 16, 2, 2, 32, max_positions=128))
    directory = tmp_path_factory.mktemp("tiny")
    save_pretrained(model, tokenizer, directory)
    return str(directory)


def test_ratios_are_of_the_processors_time_by_hand():
    theirs, ours = finetune.Meter(wall=[9.0] * 3, cpu=[2.0, 4.0, 6.0]), finetune.Meter(wall=[3.0] * 3, cpu=[1.0] * 3)
    found = pairs.compare(theirs, ours)
    assert (found["median"], found["low"], found["high"], found["wall"]) == (4.0, 3.0, 5.0, 3.0)


def test_a_difference_above_its_limit_is_refused():
    pairs.refuse({"losses": 1e-6}, {"losses": 1e-5})
    with pytest.raises(SystemExit, match="losses differ by 2.0e-05, more than 1e-05"):
        pairs.refuse({"losses": 2e-5}, {"losses": 1e-5})
    with pytest.raises(SystemExit, match="losses differ by nan"):
        pairs.refuse({"losses": float("nan")}, {"losses": 1e-5})


@pytest.mark.slow
def test_pairs_pass_their_gates_and_are_measured_on_the_same_pairs(weights):
    result = json.loads(json.dumps(pairs.measure("builtin", weights, steps=2, runs=2, say=lambda line: None)))
    assert result["gates"]["vectors"] <= 1e-6 and result["gates"]["losses"] <= 1e-5
    assert len(result["targets"]) == len(pairs.TARGETS)
    assert all(speed["examples_per_second"] > 0 and 0 <= speed["padding"] < 0.9 for speed in result["speeds"].values())
    assert "sentence-transformers fp32 / ours fp32" in pairs.report(result) and weights not in json.dumps(result)


@pytest.mark.slow
def test_pairs_with_another_loss_are_not_timed(weights, monkeypatch):
    wrong = pairs.OurPairs.loss
    monkeypatch.setattr(pairs.OurPairs, "loss", lambda self, batch: wrong(self, batch | {"labels": batch["labels"] / 5}))
    with pytest.raises(SystemExit, match="losses differ"):
        pairs.gates(replace(pairs.prepare("builtin", weights)), steps=2)


@pytest.mark.slow
def test_adapters_pass_their_gates_and_are_measured_on_the_same_sentences(weights):
    result = json.loads(json.dumps(adapters.measure("builtin", weights, (2,), (8,), say=lambda line: None)))
    assert result["gates"]["logits"] <= 1e-6 and result["gates"]["losses"] <= 1e-5
    assert result["trained"]["peft, random"] == result["trained"]["ours LoRA"] < result["trained"]["ours full"]
    assert len(result["targets"]) == len(adapters.TARGETS)
    assert "peft, buckets / ours LoRA" in adapters.report(result) and weights not in json.dumps(result)


@pytest.mark.parametrize("name, gates, targets", [
    ("pairs", {"vectors": 1e-6, "losses": 1e-5}, lambda result: pairs.judged(pairs.TARGETS, result)),
    ("adapters", {"logits": 1e-6, "losses": 1e-5}, adapters.judge)])
def test_what_is_recorded_passed_its_gates_and_is_judged_by_today_s_targets(name, gates, targets):
    path = ROOT / f"book/benchmarks/{name}.json"
    if not path.is_file():
        pytest.skip(f"benchmarks.{name} has not been run with the real weights: nothing is recorded, and no page shows it")
    result = json.loads(path.read_text(encoding="utf-8"))
    assert all(result["gates"][what] <= limit for what, limit in gates.items()) and result["note"]
    assert result["targets"] == targets(result) and result["targets"]
