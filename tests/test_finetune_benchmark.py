"""The benchmark of training: its arithmetic by hand and by PyTorch's own counter, its gates, and that it runs."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import finetune
from minbert.bert import BertConfig, BertModel
from minbert.pretrained import save_pretrained
from minbert.run.data import load_task
from minbert.tokens import train_wordpiece

SIZE = dict(hidden_size=16, layers=2, heads=2, intermediate_size=32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny BERT with a vocabulary of its own, as a directory."""
    torch.manual_seed(0)
    tokenizer = train_wordpiece(load_task("sst", "train", "builtin").texts, vocab_size=400)
    model = BertModel(BertConfig(vocab_size=tokenizer.get_vocab_size(), max_positions=128, **SIZE))
    directory = tmp_path_factory.mktemp("tiny")
    save_pretrained(model, tokenizer, directory)
    return str(directory)


@pytest.fixture(scope="module")
def setting(weights):
    pytest.importorskip("transformers")
    return finetune.prepare("builtin", weights)


def test_ratios_and_quartiles_by_hand():
    theirs = finetune.Meter(wall=[4.0, 6.0, 8.0, 10.0, 12.0], cpu=[2.0] * 5)
    ours = finetune.Meter(wall=[2.0] * 5, cpu=[1.0] * 5)
    found = finetune.ratio(theirs, ours)
    assert (found["median"], found["low"], found["high"], found["n"]) == (4.0, 3.0, 5.0, 5)
    assert found["whole"] == 4.0 and found["cpu"] == 2.0
    whole = finetune.ratio(theirs, finetune.Meter(wall=[1.0, 1.0, 1.0, 1.0, 16.0], cpu=[1.0] * 5), same_batches=False)
    assert whole["median"] == 2.0 and whole["low"] is None                 # 40 s over 20 s; no pair is compared


@pytest.mark.slow
def test_operations_are_those_that_pytorch_counts(setting):
    model = BertModel(BertConfig(400, max_positions=128, hidden_dropout=0.0, attention_dropout=0.0, **SIZE))
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(400, (3, 11)), torch.ones(3, 11))              # no padding
    pooler = 2 * 3 * SIZE["hidden_size"] ** 2
    ids = [[1] * 11] * 3
    found = finetune.counts_of(setting, ids, [[0, 1, 2]], backward=False)
    assert found["flop"] == counter.get_total_flops() - pooler
    assert finetune.counts_of(setting, ids, [[0, 1, 2]])["flop"] == 3 * found["flop"]
    assert (found["examples"], found["tokens"], found["positions"]) == (3, 33, 33)
    ragged = finetune.counts_of(setting, [[1] * 2, [1] * 5], [[0, 1]])
    assert (ragged["tokens"], ragged["positions"]) == (7, 10)


@pytest.mark.slow
def test_nothing_is_timed_when_the_contenders_differ(setting, tmp_path, monkeypatch):
    passed = finetune.gates(setting, agreement=tmp_path / "none.json")
    assert passed["logits"] <= 1e-6 and passed["losses"] <= 1e-5
    assert passed["dev accuracy within the spread"] is None                # there is no such record: not known
    record = tmp_path / "agreement.json"
    record.write_text(json.dumps({"agree": False}))
    with pytest.raises(SystemExit, match="agreement.json says that the dev accuracies differ"):
        finetune.gates(setting, agreement=record)
    real = finetune.PlainLoop.step
    monkeypatch.setattr(finetune.PlainLoop, "step", lambda self, indices: real(self, indices[:-1]))
    with pytest.raises(SystemExit, match="losses differ by"):
        finetune.gates(setting, agreement=tmp_path / "none.json")


@pytest.mark.slow
def test_it_measures_every_contender_on_the_same_sentences_and_judges_every_target(weights):
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    result = finetune.measure("builtin", weights, steps=(2,), batch_sizes=(8,), runs=2, dev_sentences=12,
                              say=lambda line: None)
    entry = json.loads(json.dumps(result))["batch_sizes"]["8"]             # it can be written down
    assert set(entry["speeds"]["runs"]) == {*finetune.TRAINERS, *finetune.RUNS}
    assert len(entry["speeds"]["steps"]) == 3 + len(finetune.WITHOUT)
    for part in entry["speeds"].values():
        for speed in part.values():
            assert speed["examples_per_second"] > 0 and 0 <= speed["padding"] < 0.9 and 0 < speed["utilisation"] < 1
    for ratio in entry["ratios"]:
        assert ratio["median"] > 0 and (ratio["low"] is None or ratio["low"] <= ratio["median"] <= ratio["high"])
    assert len(result["targets"]) == len(finetune.TARGETS)
    text = finetune.report(result)
    assert "Trainer tuned / ours bf16" in text and ("reached" in text or "missed" in text)
    assert weights not in json.dumps(result)                               # no path of the machine


def test_several_threads_are_refused_on_a_busy_machine(monkeypatch, capsys):
    monkeypatch.setattr(finetune.os, "getloadavg", lambda: (1.7, 1.0, 1.0))
    monkeypatch.setattr(sys, "argv", ["finetune", "--threads", "2"])
    with pytest.raises(SystemExit):
        finetune.main()
    assert "the machine is busy (load 1.7)" in capsys.readouterr().err


def test_the_recorded_measurement_passed_its_gates_and_is_judged_by_today_s_targets():
    result = json.loads((Path(__file__).parents[1] / "book/benchmarks/finetune.json").read_text(encoding="utf-8"))
    assert result["gates"]["logits"] <= 1e-6 and result["gates"]["losses"] <= 1e-5
    assert result["gates"]["dev accuracy within the spread"] is not False
    assert result["targets"] == finetune.judge(result)                     # as measured, against the targets of the code
    assert len(result["targets"]) == 2 * len(finetune.TARGETS) and result["note"]
    for size, entry in result["batch_sizes"].items():
        for part in entry["speeds"].values():
            assert len({round(s["examples_per_second"] * s["seconds"]) for s in part.values()}) == 1    # the same sentences
