"""Checkpoints: a training run on disk, so that nothing is lost when the machine, the disk or the reader stops it.

A checkpoint is one safetensors file.  The tensors are in it by name, and the rest (configuration, history, epoch) is
JSON in the file's header.  Nothing is ever pickled, so opening a checkpoint can't run code.

One file, because one file can be replaced in one step: it is written beside its place, flushed to the disk, and then
moved there.  Whoever looks at any moment sees the old checkpoint or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import errno
import json
from pathlib import Path

import torch

from minbert.files import write_atomically

FORMAT = "minbert-checkpoint-1"


class CheckpointError(ValueError):
    """A checkpoint that can't be read, written or used; one line says which and what to do."""


AGAIN = "; start over with --again"
MAKE_ROOM = "Make room, or choose another --out (or --runs), and go on with --resume"


def write_whole(path, content: bytes, remedy: str = MAKE_ROOM) -> Path:
    """Write a file so that it is there whole or not at all.  An earlier file stays until the new one is complete.

    Raises CheckpointError, which ends with `remedy`, when the disk is full or the place can't be written.
    """
    with writing(path, remedy):
        return write_atomically(path, content)


@contextlib.contextmanager
def writing(path, remedy: str = MAKE_ROOM):
    """Within this a file is written by `write_atomically`; its OSError becomes one line that ends with `remedy`.

    Raises CheckpointError.
    """
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise CheckpointError(
            f"{path}: could not be written ({why}); what was there before is untouched. {remedy}"
        ) from error


def save(path, tensors: dict, meta: dict) -> Path:
    """Write named tensors and a JSON dictionary as one file, atomically.

    Tensors are copied to the CPU, so tied weights (two names, one tensor) are no problem.
    Raises CheckpointError when the file can't be written.
    """
    from safetensors.torch import save as to_bytes

    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"format": FORMAT, "minbert": json.dumps(meta)}
    return write_whole(path, to_bytes(copies, metadata=header))


def load(path) -> tuple[dict, dict]:
    """(tensors, meta) as they were given to `save`.  Raises CheckpointError for a missing, truncated or foreign file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        what = "this is a directory, not a checkpoint" if path.exists() else "no such checkpoint"
        raise CheckpointError(f"{path}: {what}{AGAIN}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{path}: not a checkpoint of this book (its header does not say {FORMAT}){AGAIN}")
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["minbert"])
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: truncated or damaged, it can't be read ({error}){AGAIN}") from None


# ---- the state of a run in the middle of training -----------------------------------------------------------------

def save_training(path, model, optimizer, meta: dict, scaler=None) -> Path:
    """Everything that the rest of the run depends on: model, optimizer, random numbers, and `meta`.

    Tensor names: model/<name> · optimizer/<parameter>/<key> (exp_avg, …) · random/cpu, random/cuda/<device>.
    """
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()
    numbers = {}                                     # what an optimizer keeps besides tensors, such as a step count
    for index, name in enumerate(_optimized_names(model, optimizer)):
        for key, value in state["state"].get(index, {}).items():
            if torch.is_tensor(value):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                numbers[f"{name}/{key}"] = value
    tensors.update(random_state())
    meta = dict(meta, groups=state["param_groups"], numbers=numbers, scaler=scaler.state_dict() if scaler else {})
    return save(path, tensors, meta)


def load_training(path, model, optimizer, scaler=None) -> dict:
    """Put a saved run back into `model`, `optimizer` and the random generators, and return its `meta`.

    Raises CheckpointError when the file is damaged, or its tensors don't fit the model.
    """
    tensors, meta = load(path)
    fit(model, {name[len("model/"):]: t for name, t in tensors.items() if name.startswith("model/")}, path)
    names = _optimized_names(model, optimizer)
    if [len(group["params"]) for group in meta["groups"]] != [len(g["params"]) for g in optimizer.param_groups]:
        raise CheckpointError(f"{path}: its optimizer trains other parameters than this run{AGAIN}")
    state = {}
    for index, name in enumerate(names):
        prefix = f"optimizer/{name}/"
        entry = {key[len(prefix):]: t for key, t in tensors.items() if key.startswith(prefix)}
        entry.update({key[len(name) + 1:]: v for key, v in meta["numbers"].items() if key.startswith(name + "/")})
        if entry:
            state[index] = entry
    optimizer.load_state_dict({"state": state, "param_groups": meta["groups"]})
    if scaler is not None and meta["scaler"]:
        scaler.load_state_dict(meta["scaler"])
    set_random_state(tensors)
    return meta


def fit(model, tensors: dict, path) -> None:
    """Load `tensors` into `model`; the error names what is missing, extra or misshaped.  Raises CheckpointError."""
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    bent = [name for name in sorted(set(own) & set(tensors)) if own[name].shape != tensors[name].shape]
    faults = [f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
              for what, names in (("missing", missing), ("unexpected", extra), ("misshaped", bent)) if names]
    if faults:
        raise CheckpointError(f"{path}: it does not fit this model: {'; '.join(faults)}{AGAIN}")
    model.load_state_dict(tensors)


def _optimized_names(model, optimizer) -> list[str]:
    """The names of the optimizer's parameters, in the optimizer's own order."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def random_state() -> dict:
    """The state of torch's generators as tensors.  Training draws its dropout from these and from no other generator."""
    state = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state.update({f"random/cuda/{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())})
    return state


def set_random_state(tensors: dict) -> None:
    """The reverse of `random_state`."""
    torch.set_rng_state(tensors["random/cpu"])
    for name, state in tensors.items():
        if name.startswith("random/cuda/") and torch.cuda.is_available():
            torch.cuda.set_rng_state(state, int(name.rsplit("/", 1)[1]))


def check_same(saved: dict, wanted: dict, path) -> None:
    """Raise CheckpointError, naming every setting that differs, unless two public configurations agree."""
    from minbert.run.recipes import differences

    found = differences(saved, wanted)
    if found:
        raise CheckpointError(f"{path}: made with other settings ({'; '.join(found)}). "
                              "Use those, or another --out, or start over with --again")
