"""Which task comes next: exact probabilities, plans that can be drawn again, streams that lose nothing."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minbert import multitask
from minbert.multitask import make_plan
from minbert.run.batching import batches

COURSE = (8544, 141498, 6040)                        # SST, QQP, STS


@pytest.mark.parametrize("epochs, epoch, wanted", [
    (10, 1, (0.0547, 0.9066, 0.0387)), (10, 5, (0.1265, 0.7723, 0.1012)), (10, 10, (0.2713, 0.4756, 0.2531)),
])
def test_annealed_probabilities_of_the_course_data(epochs, epoch, wanted):
    found = multitask.task_probabilities(COURSE, multitask.annealed_exponent(epoch, epochs))
    assert found.round(4).tolist() == list(wanted)


def test_probabilities_by_hand():
    assert multitask.task_probabilities([100, 400], 1).tolist() == [0.2, 0.8]
    assert multitask.task_probabilities([100, 400], 0.5).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert multitask.task_probabilities([100, 400], 0).tolist() == [0.5, 0.5]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_probabilities_sum_to_one_and_a_larger_task_is_never_rarer(counts, exponent):
    p = multitask.task_probabilities(counts, exponent)
    assert abs(p.sum() - 1) < 1e-12
    order = np.argsort(counts, kind="stable")
    assert (np.diff(p[order]) >= -1e-15).all()


def test_the_exponent_falls_from_one_to_a_fifth_and_one_epoch_divides_by_nothing():
    exponents = [multitask.annealed_exponent(epoch, 5) for epoch in range(1, 6)]
    assert exponents == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert multitask.annealed_exponent(1, 1) == 1.0


@pytest.mark.parametrize("epochs, epoch", [(5, 0), (5, 6)])
def test_an_epoch_outside_the_run_is_refused(epochs, epoch):
    with pytest.raises(ValueError, match=f"epoch {epoch} is not between 1 and 5"):
        multitask.annealed_exponent(epoch, epochs)
    with pytest.raises(ValueError, match=f"epoch {epoch} is not between 1 and 5"):
        make_plan("sequential", [8], 8, epoch, epochs)


def test_sequential_goes_through_every_batch_of_every_task_in_order():
    assert make_plan("sequential", [17, 8], 8, 1, 3) == [(0,), (0,), (0,), (1,)]


def test_phases_give_whole_epochs_to_one_task_after_the_other():
    found = [make_plan("phases", [16, 8, 8], 8, epoch, 6)[0] for epoch in range(1, 7)]
    assert found == [(0,), (0,), (1,), (1,), (2,), (2,)]
    assert make_plan("phases", [16, 8], 8, 1, 2) == [(0,), (0,)]
    with pytest.raises(ValueError, match="2 epochs are fewer than 3 tasks"):
        make_plan("phases", [8, 8, 8], 8, 1, 2)


def test_round_robin_takes_turns_until_the_shortest_or_the_longest_is_spent():
    assert make_plan("round-robin", [17, 8], 8, 1, 1) == [(0,), (1,)]
    assert make_plan("round-robin", [17, 8], 8, 1, 1, stop="longest") == [(0,), (1,)] * 3
    assert make_plan("round-robin", [17, 8], 8, 1, 1, stop="longest", step="summed") == [(0, 1)] * 3


@pytest.mark.parametrize("method, exponent", [("proportional", 1), ("square-root", 0.5), ("annealed", 0.2)])
def test_drawn_plans_follow_their_probabilities(method, exponent):
    counts = [400, 6400, 100]
    plan = make_plan(method, counts, 8, 4, 4, seed=3, steps=20_000)
    shares = np.array([Counter(plan)[(task,)] for task in range(3)]) / len(plan)
    expected = multitask.task_probabilities(counts, exponent)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / 20_000)     # four standard errors at most


def test_a_plan_is_the_same_for_the_same_seed_and_epoch_and_another_for_others():
    first = make_plan("annealed", COURSE, 8, 2, 5, seed=1, steps=200)
    assert first == make_plan("annealed", COURSE, 8, 2, 5, seed=1, steps=200)
    assert first != make_plan("annealed", COURSE, 8, 2, 5, seed=2, steps=200)
    assert first != make_plan("proportional", COURSE, 8, 3, 5, seed=1, steps=200)


def test_the_default_epoch_is_half_of_all_batches():
    assert multitask.batches_of(COURSE, 8) == [1068, 17688, 755]
    assert len(make_plan("annealed", COURSE, 8, 1, 10)) == multitask.default_steps(COURSE, 8) == 9755


@pytest.mark.parametrize("call, message", [
    (dict(method="anneal"), "none of sequential, phases, round-robin"),
    (dict(method="round-robin", stop="first"), "none of shortest, longest"),
    (dict(method="annealed", step="sum"), "none of per_batch, summed"),
    (dict(method="annealed", step="summed"), "goes with round-robin, not with annealed"),
    (dict(method="annealed", counts=[3, 0]), "at least one example"),
    (dict(method="round-robin", counts=[3, 0]), "at least one example"), (dict(method="phases", counts=[]), "at least one example"),
    (dict(method="round-robin", batch_size=-8), "batch_size must be at least 1, not -8"),
])
def test_what_can_not_be_planned_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**{"counts": [8, 8], "batch_size": 8, "epoch": 1, "epochs": 2, **call})


def test_positions_count_on_from_the_epoch_before():
    plan = make_plan("sequential", [17, 8], 8, 1, 3)
    assert multitask.positions(plan, 2) == [3, 1]
    assert multitask.positions(plan, 2, start=[10, 5]) == [13, 6]
    assert multitask.positions([(0, 1)] * 4, 2) == [4, 4]


def test_a_stream_shows_every_example_once_a_pass_and_shuffles_each_pass_anew():
    lengths = [3, 5, 4, 6, 2, 7, 3]
    stream = multitask.Stream(lambda number: batches(lengths, 2, seed=0, epoch=number, bucket=1))
    taken = [stream[k] for k in range(12)]           # three passes of four batches
    for number in range(3):
        part = taken[4 * number : 4 * number + 4]
        assert sorted(i for batch in part for i in batch) == list(range(7))
    assert taken[:4] != taken[4:8]                   # itertools.cycle over a finished list would repeat the first pass
    assert [stream[k] for k in (9, 2, 11)] == [taken[9], taken[2], taken[11]]     # asked for in any order


# ---- the tasks' gradients ----------------------------------------------------------------------------------------

def line(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_cosines_of_gradients_worked_by_hand():
    # Losses whose gradients on w = (x, y) are (3, 4), (4, -3) and (-3, -4).
    w = torch.nn.Parameter(line(0.5, -2.0))
    losses = [w @ line(3, 4), w @ line(4, -3), w @ line(-3, -4)]
    assert multitask.task_gradients(losses, [w]).tolist() == [[3, 4], [4, -3], [-3, -4]]
    wanted = torch.tensor([[1, 0, -1], [0, 1, 0], [-1, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(multitask.gradient_cosines(losses, [w]), wanted)
    assert w.grad is None


def test_cosines_are_over_all_shared_parameters_and_of_no_others():
    a, b, head = (torch.nn.Parameter(line(*values)) for values in [(1, 2), (3,), (4,)])
    losses = [(a.sum() + b.sum()) * head.sum(), a[0] * 2]      # on (a, b): (4, 4, 4) and (2, 0, 0)
    found = multitask.gradient_cosines(losses, [a, b])
    assert found[0, 1].item() == pytest.approx(1 / 3**0.5)
    wanted = torch.nn.functional.cosine_similarity(line(4, 4, 4), line(2, 0, 0), dim=0)
    torch.testing.assert_close(found[1, 0], wanted)


def test_a_gradient_of_zero_has_no_direction():
    w = torch.nn.Parameter(line(1, 1))
    found = multitask.gradient_cosines([w.sum(), 0 * w.sum()], [w])
    assert found[0, 0].item() == pytest.approx(1) and found[0, 1].isnan() and found[1, 1].isnan()


def test_frozen_parameters_are_left_out_and_nothing_to_learn_is_refused():
    w, frozen = torch.nn.Parameter(line(1, 1)), torch.nn.Parameter(line(5), requires_grad=False)
    assert multitask.task_gradients([w.sum() * frozen.sum()], [w, frozen]).tolist() == [[5, 5]]
    for losses, shared in (([], [w]), ([w.sum()], []), ([w.sum()], [frozen])):
        with pytest.raises(ValueError, match="gradients need losses and parameters that learn"):
            multitask.gradient_cosines(losses, shared)
