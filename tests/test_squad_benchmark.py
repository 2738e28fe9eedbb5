"""Featurising and decoding beside Hugging Face's way: the check before any time, and what the recorded run says."""

import json
from pathlib import Path

import pytest

from minbert.run.data_pairs import load_squad
from minbert.squad import decode


def test_both_ways_agree_and_a_difference_is_noticed(monkeypatch):
    pytest.importorskip("transformers")
    from benchmarks import squad as bench

    result = bench.measure("builtin", limit=30, part=15, rounds=1)
    assert result["windows_compared"] == result["answers_compared"] == 30 == result["windows"]
    for part in ("featurise", "decode"):
        for clock in ("cpu", "wall"):
            assert result[part][clock]["ratio"] > 0 and result[part][clock]["ours_per_second"] > 0
    monkeypatch.setattr(bench, "decode", lambda *a, **k: decode(*a[:-1], 1, **k))     # answers of one piece only
    with pytest.raises(ValueError, match="the answers differ"):
        bench.measure("builtin", limit=30, part=15, rounds=1)


def test_the_recorded_run_keeps_what_the_book_says():
    record = json.loads((Path(__file__).parents[1] / "book/benchmarks/spans.json").read_text(encoding="utf-8"))
    assert record["answers_compared"] == record["questions"] > 1000
    assert record["featurise"]["cpu"]["ratio"] >= 1
    assert record["decode"]["cpu"]["ratio"] >= 1


def test_their_answers_places_are_ours_on_the_built_in_passages():
    transformers = pytest.importorskip("transformers")
    from benchmarks.squad import their_windows
    from minbert.pretrained import find_weights
    from minbert.squad import featurise
    from minbert.tokens import load_tokenizer

    directory, questions = find_weights("minilm"), load_squad("dev").questions
    encoded, starts, ends = their_windows(transformers.AutoTokenizer.from_pretrained(directory), questions)
    for w, window in enumerate(featurise(load_tokenizer(directory), questions)):
        assert (window.ids, window.types) == (encoded["input_ids"][w], encoded["token_type_ids"][w])
        assert (window.start, window.end) == (starts[w], ends[w])
