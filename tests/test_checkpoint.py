"""Checkpoints: what comes back is what was saved, bit for bit; whatever goes wrong, the earlier file is still there."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from minbert import files
from minbert.optim import make_optimizer
from minbert.run import checkpoint
from minbert.run.checkpoint import CheckpointError


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(7, 4), nn.Dropout(0.5), nn.Linear(4, 3))


def steps(model, optimizer, count):
    """Train on random data with dropout: every loss depends on model, optimizer and random state."""
    losses = []
    for _ in range(count):
        loss = (model(torch.randint(7, (5,))) - torch.randn(5, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_tensors_and_meta_come_back(tmp_path):
    tensors = {"a": torch.randn(3, 2), "half": torch.randn(4).bfloat16(), "bytes": torch.arange(9, dtype=torch.uint8),
               "scalar": torch.tensor(2.5), "turned": torch.randn(2, 3).T}
    meta = {"score": 0.1 + 0.2, "names": ["é", "b"], "none": None}
    path = checkpoint.save(tmp_path / "c.safetensors", tensors, meta)
    got, got_meta = checkpoint.load(path)
    assert got_meta == meta                          # floats exactly, too
    assert {n: t.dtype for n, t in got.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(got[name], tensors[name]) for name in tensors)
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_tied_weights_are_saved_and_loaded(tmp_path):
    model = small_model()
    model.again = model[0]
    checkpoint.save(tmp_path / "c", model.state_dict(), {})
    other = small_model(seed=1)
    other.again = other[0]
    checkpoint.fit(other, checkpoint.load(tmp_path / "c")[0], "c")
    assert torch.equal(other[0].weight, model[0].weight) and other.again.weight is other[0].weight


def test_training_goes_on_bit_for_bit(tmp_path):
    model = small_model()
    optimizer = make_optimizer(model, lr=0.1)
    steps(model, optimizer, 3)
    checkpoint.save_training(tmp_path / "last", model, optimizer, {"epoch": 3})
    expected = steps(model, optimizer, 4)

    other = small_model(seed=5)
    other_optimizer = make_optimizer(other, lr=0.7)
    steps(other, other_optimizer, 1)                 # whatever it held before must be gone
    assert checkpoint.load_training(tmp_path / "last", other, other_optimizer)["epoch"] == 3
    assert steps(other, other_optimizer, 4) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert other_optimizer.param_groups[0]["lr"] == 0.1


def test_an_optimizer_that_counts_in_python_comes_back_too(tmp_path):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps(model, optimizer, 1)
    optimizer.state[model[0].weight]["count"] = 7    # not a tensor
    checkpoint.save_training(tmp_path / "last", model, optimizer, {})
    other = small_model(seed=1)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    checkpoint.load_training(tmp_path / "last", other, other_optimizer)
    assert other_optimizer.state[other[0].weight]["count"] == 7


def test_a_frozen_parameter_is_not_looked_for_in_the_optimizer(tmp_path):
    model = small_model()
    model[0].weight.requires_grad = False
    optimizer = make_optimizer(model)
    steps(model, optimizer, 1)
    checkpoint.save_training(tmp_path / "last", model, optimizer, {})
    assert not any(name.startswith("optimizer/0.weight") for name in checkpoint.load(tmp_path / "last")[0])
    thawed = small_model()
    with pytest.raises(CheckpointError, match="other parameters"):
        checkpoint.load_training(tmp_path / "last", thawed, make_optimizer(thawed))


@pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_line(tmp_path, keep):
    path = checkpoint.save(tmp_path / "c.safetensors", {"a": torch.randn(50)}, {"epoch": 1})
    content = path.read_bytes()
    path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(CheckpointError, match="truncated or damaged") as error:
        checkpoint.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_foreign_and_pickled_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not a checkpoint of this book"):
        checkpoint.load(tmp_path / "foreign")

    class Trap:                                      # a pickle runs code when it is opened; ours must never be opened so
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    torch.save({"a": Trap()}, tmp_path / "pickled")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(tmp_path / "pickled")
    assert not (tmp_path / "sprung").exists()


def test_what_does_not_fit_is_named(tmp_path):
    tensors = {"0.weight": torch.zeros(7, 5), "2.weight": torch.zeros(3, 4), "more": torch.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.fit(small_model(), tensors, "here")
    assert str(error.value) == "here: it does not fit this model: missing 2.bias; unexpected more; misshaped 0.weight; start over with --again"


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, function, error):
    path = checkpoint.save(tmp_path / "c.safetensors", {"a": torch.zeros(2)}, {"epoch": 1})

    def fail(*_):
        raise error

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        checkpoint.save(path, {"a": torch.ones(2)}, {"epoch": 2})
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert "disk is full" in str(caught.value) and "untouched" in str(caught.value)
    tensors, meta = checkpoint.load(path)
    assert meta == {"epoch": 1} and tensors["a"].sum() == 0
    assert os.listdir(tmp_path) == ["c.safetensors"]             # nothing half-written lies about


def test_a_real_write_that_does_not_fit_leaves_the_earlier_checkpoint(tmp_path):
    """The system itself refuses to let the file grow, as a full disk does."""
    path = checkpoint.save(tmp_path / "c.safetensors", {"a": torch.zeros(2)}, {"epoch": 1})
    code = ("import sys, torch; from minbert.run import checkpoint\n"
            "try: checkpoint.save(sys.argv[1], {'a': torch.ones(100_000)}, {'epoch': 2})\n"
            "except checkpoint.CheckpointError as error: sys.exit('refused' if 'untouched' in str(error) else 'wrong')")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, preexec_fn=limit,
                          cwd=os.getcwd(), env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stderr.strip() == "refused" and done.returncode == 1
    assert checkpoint.load(path)[1] == {"epoch": 1} and os.listdir(tmp_path) == ["c.safetensors"]


def test_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """A process that does nothing but save is killed outright (no cleaning up): the file is always one of those saved."""
    path = tmp_path / "c.safetensors"
    code = ("import sys, torch; from minbert.run import checkpoint\nn = 0\n"
            "while True:\n    n += 1; checkpoint.save(sys.argv[1], {'a': torch.full((200_000,), n)}, {'n': n})\n"
            "    print(n, flush=True)")
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
    for _ in range(4):
        process.stdout.readline()
    process.kill()                                   # somewhere in the fifth save
    process.wait()
    process.stdout.close()
    tensors, meta = checkpoint.load(path)
    assert meta["n"] >= 4 and bool((tensors["a"] == meta["n"]).all())
    checkpoint.save(path, {"a": torch.zeros(1)}, {"n": 0})       # what the kill left behind is no hindrance
    assert os.listdir(tmp_path) == ["c.safetensors"]


def test_another_configuration_is_refused_with_the_names_of_what_differs():
    from minbert.run.recipes import public, resolve

    with pytest.raises(CheckpointError, match=r"lr: 3e-05 → 0.001; freeze: none → full"):
        checkpoint.check_same(public(resolve("sst-full")), public(resolve("sst-frozen", lr=1e-3)), "here")
    checkpoint.check_same(public(resolve("sst-full")), public(resolve("sst-full")), "here")
