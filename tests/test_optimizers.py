"""The benchmark of the optimizers: what it compares is the same, and ours is not slower than PyTorch's default."""

import pytest
import torch

from benchmarks import optimizers
from minbert.bert import BertConfig
from minbert.optim import AdamW

SMALL = BertConfig(vocab_size=60, hidden_size=16, layers=2, heads=2, intermediate_size=24, max_positions=8)


def test_the_benchmark_gives_quartiles_of_times_and_ratios_for_each_contender():
    result = optimizers.measure(SMALL, rounds=6, warm=2)
    assert set(result["contenders"]) == set(optimizers.CONTENDERS)
    for name, row in result["contenders"].items():
        for low, middle, high in row.values():
            assert 0 <= low <= middle <= high and high > 0
        assert name in optimizers.as_text(result)
    assert result["contenders"][result["default"]]["ratio"] == [1, 1, 1]
    assert result["largest_difference"] <= 1e-6


def test_no_time_is_taken_of_optimizers_that_differ(monkeypatch):
    monkeypatch.setitem(optimizers.CONTENDERS, "ours", lambda groups: AdamW(groups, eps=1e-2))
    with pytest.raises(RuntimeError, match="the optimizers differ by"):
        optimizers.measure(SMALL, rounds=2, warm=2)


@pytest.mark.slow
def test_ours_is_not_slower_than_pytorchs_default():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = optimizers.measure(rounds=8)
    finally:
        torch.set_num_threads(threads)
    # The processor's time: on a busy machine the clock's says more about the others.
    ours, default = (result["contenders"][name]["cpu_ms"][1] for name in ("ours", result["default"]))
    assert ours <= default, optimizers.as_text(result)
