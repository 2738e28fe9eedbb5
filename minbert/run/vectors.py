"""Sentence vectors on the command line (chapter 7): `minbert embed` writes them, `minbert similar` looks among them.

A file of vectors is one of two kinds, by the ending of its name:

  .safetensors   the vectors, the sentences they belong to, and how they were made: `similar` needs nothing else
  .npy           the vectors alone, (N, D) float32, for NumPy and every other tool; `similar` then asks for --sentences

PyTorch takes seconds to import, so that each function imports what it needs.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

FORMAT = "minbert-vectors-1"
ENDINGS = (".safetensors", ".npy")
POOLINGS = ("mean", "pooler")
AGAIN = "make it again with minbert embed"


class VectorsError(ValueError):
    """Sentences or vectors that can't be read, written or used; one line says which and what to do."""


@dataclass
class Vectors:
    """What a file of vectors holds."""

    rows: object                   # (N, D) float32, a NumPy array
    sentences: list | None         # N strings; None: the file is a .npy and has none
    made: dict                     # model, task, sha256, pooling, normalised, max_length; empty for a .npy


@dataclass
class Embedder:
    """What turns sentences into vectors."""

    encoder: object                # in evaluation mode
    projection: object             # a Linear, or None: a run whose pairs are compared after one
    tokenizer: object
    name: str
    sha256: str
    size: int                      # D
    longest: int                   # positions
    smoke: bool = False            # from a run of size smoke: it has learned nothing


# ---- sentences to vectors ----------------------------------------------------------------------------------------

def load_embedder(source: str, task: str | None = None) -> Embedder:
    """The encoder of a run's directory (its best checkpoint) or of pre-trained weights, see `find_weights`.

    `task`: which one's vectors, in a run of several. It may be left out where they all have the same.

    Raises WeightsError or CheckpointError when there is nothing usable of that name; VectorsError for a task that was not
    trained there, or for none where each has vectors of its own (an adapter or a projection).
    """
    from minbert.pretrained import load_pretrained, sha256_of

    directory = Path(source)
    if directory.is_dir() and (directory / "encoder" / "model.safetensors").is_file():
        directory = directory / "encoder"            # pre-trained here: what is learned is kept as a model's directory
    if not list(directory.glob("best-*.safetensors")):
        if task is not None:
            raise VectorsError(f"{source}: pre-trained weights have no tasks: leave --task {task} out")
        encoder, tokenizer, info = load_pretrained(str(directory if directory.is_dir() else source))
        return Embedder(encoder, None, tokenizer, source, info.sha256, encoder.hidden_size, encoder.config.max_positions)

    from torch import nn

    from minbert.run import build, checkpoint
    from minbert.run.recipes import Config

    path = build.best_checkpoint(directory)
    tensors, meta = checkpoint.load(path)
    config = {**vars(Config()), **meta["config"]}
    names = config["task"].split("+")
    if task is not None and task not in names:
        raise VectorsError(f"{path}: there is no task {task!r} in it: {', '.join(names)}")
    own = config["adapt"] != "none" or any(".projection." in name for name in tensors)
    if task is None and len(names) > 1 and own:
        raise VectorsError(f"{path}: each task has vectors of its own: choose by --task, one of {', '.join(names)}")
    # cls_only reads one token of the last layer, and the mean needs all
    meta = {**meta, "config": {**config, "last_layer": "all"}}
    model = build.load_task_model(path, tensors, meta, task or names[0])
    model = getattr(model, "model", model)           # of one head of several, see `build.OneHead`
    encoder, projection = model.encoder, getattr(model, "projection", None)
    projection = projection if isinstance(projection, nn.Linear) else None
    tokenizer = build.run_tokenizer(directory)
    size = projection.out_features if projection is not None else encoder.hidden_size
    return Embedder(encoder.eval(), projection, tokenizer, source, sha256_of(path), size,
                    meta["shape"].get("max_positions", 512), config["size"] == "smoke")


def embed_sentences(embedder: Embedder, sentences: list, pooling="mean", normalise=True, max_length=128, arithmetic=None,
                    batch_size=64, progress=False):
    """The vectors of sentences: (N, D) float32, in their order, and how many of the sentences were cut.

    Args:
        embedder: see `load_embedder`.
        sentences: N strings.
        pooling: "mean" over the tokens, or "pooler": the vector of [CLS] after the model's last linear layer.
        normalise: divide each vector by its length, so that a dot product of two is their cosine.
        max_length: the most word pieces of a sentence; the rest is cut.
        arithmetic: from `device.choose`; None: the CPU in float32.
        batch_size: sentences of similar length go through together, at least so many.
        progress: show a bar.

    Raises:
        VectorsError: another pooling, or more pieces than the model has positions.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from minbert.bert import BertModel
    from minbert.embeddings import mean_pool
    from minbert.fast import use_cls_only, use_fast
    from minbert.run import device
    from minbert.run.batching import collate, filled_batches
    from minbert.tokens import encode

    if pooling not in POOLINGS:
        raise VectorsError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")
    if not 3 <= max_length <= embedder.longest:
        raise VectorsError(f"--max-length {max_length}: {embedder.name} takes 3 to {embedder.longest} word pieces a sentence")
    arithmetic = arithmetic or device.choose("cpu")
    model = torch.nn.ModuleList([embedder.encoder, embedder.projection or torch.nn.Identity()]).to(arithmetic.device).eval()
    use_fast(model, arithmetic.precision == "fp32")  # in 16 bits the fused kernel for the CPU is the slower one
    if pooling == "pooler" and isinstance(embedder.encoder, BertModel):
        use_cls_only(model)                          # nothing else of the last layer is read
    encoded = encode(embedder.tokenizer, sentences, max_length)
    rows = np.empty((len(sentences), embedder.size), dtype=np.float32)                       # (N, D)
    with torch.no_grad(), arithmetic.autocast(), tqdm(total=len(sentences), unit="sentence", desc="embed", leave=False,
                                                      disable=None if progress else True) as bar:
        for indices in filled_batches([len(ids) for ids in encoded.ids], batch_size):
            batch = arithmetic.move(collate(indices, encoded.ids))
            hidden, pooled = model[0](batch["input_ids"], batch["attention_mask"])           # (B, T, D), (B, D)
            vector = model[1](mean_pool(hidden, batch["attention_mask"]) if pooling == "mean" else pooled).float()
            rows[indices] = (torch.nn.functional.normalize(vector, dim=-1) if normalise else vector).cpu().numpy()
            bar.update(len(indices))
    return rows, encoded.truncated


def nearest_sentences(rows, queries, top=5):
    """The rows that point most nearly the way of each query.

    Args:
        rows: (N, D) and queries: (Q, D), NumPy arrays of any lengths; a vector of zeros has cosine 0 with everything.
        top: how many for each query.

    Returns:
        for each query a list of (row, cosine), the largest cosine first, rows with equal cosines in their order.
    """
    import numpy as np

    def directions(vectors):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths > 0, lengths, 1)

    cosines = directions(queries) @ directions(rows).T                                       # (Q, N)
    return [[(int(row), float(line[row])) for row in np.argsort(-line, kind="stable")[:top]] for line in cosines]


# ---- files -------------------------------------------------------------------------------------------------------

def sentences_of(path) -> list:
    """The sentences of a text file, one a line, without empty lines; "-" is standard input.  Raises VectorsError."""
    where = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else Path(path).read_text(encoding="utf-8-sig")
        text.encode()                                # undecodable bytes of standard input are found only here
    except UnicodeError:
        raise VectorsError(f"{where}: can't be read (not UTF-8): save it with the encoding UTF-8") from None
    except OSError as error:
        raise VectorsError(f"{where}: can't be read ({error.strerror}): name a text file with one sentence a line") from None
    sentences = [line.strip() for line in text.splitlines() if line.strip()]
    if not sentences:
        raise VectorsError(f"{where}: holds no sentence: put one a line")
    return sentences


def check_out(path, again: bool) -> Path:
    """The place of a new file of vectors, looked at before the work is done.  Raises VectorsError."""
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise VectorsError(f"{path}: its name must end with {' or '.join(ENDINGS)}, which says what is written")
    if path.is_dir():
        raise VectorsError(f"{path}: this is a directory; give the name of a file in it")
    if path.exists() and not again:
        raise VectorsError(f"{path}: is there already: --again replaces it, another --out leaves it alone")
    if not path.parent.is_dir():
        raise VectorsError(f"{path}: there is no directory {path.parent}: make it, or choose another --out")
    if not os.access(path.parent, os.W_OK):
        raise VectorsError(f"{path}: the directory {path.parent} can't be written: choose another --out")
    return path


def write_vectors(path, rows, sentences, made: dict) -> Path:
    """Write vectors, whole or not at all, as the ending of the name says.  Raises CheckpointError on a full disk."""
    import numpy as np
    from safetensors.numpy import save

    from minbert.run.checkpoint import write_whole

    path, content = Path(path), io.BytesIO()
    if path.suffix == ".npy":
        np.save(content, rows)
    else:
        # The sentences are a tensor of bytes: a header, where `made` is, must stay small.
        text = np.frombuffer("\n".join(sentences).encode(), dtype=np.uint8)
        content.write(save({"vectors": np.ascontiguousarray(rows), "sentences": text},
                           metadata={"format": FORMAT, "minbert": json.dumps(made)}))
    return write_whole(path, content.getvalue(), "Make room, or choose another --out")


def read_vectors(path) -> Vectors:
    """What `write_vectors` wrote, or any .npy of shape (N, D).  Raises VectorsError: missing, damaged, of another kind."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.suffix not in ENDINGS:
        raise VectorsError(f"{path}: no file of vectors (its name would end with {' or '.join(ENDINGS)}); "
                           "minbert embed makes one")
    if not path.is_file():
        raise VectorsError(f"{path}: no such file; minbert embed makes one")
    sentences, made = None, {}
    try:
        if path.suffix == ".npy":
            rows = np.load(path, allow_pickle=False)
            if not isinstance(rows, np.ndarray):
                raise ValueError("it is an archive of several arrays")
        else:
            with safe_open(path, framework="np") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise VectorsError(f"{path}: holds no vectors of this book (its header does not say {FORMAT}); {AGAIN}")
                made, rows = json.loads(header["minbert"]), file.get_tensor("vectors")
                sentences = file.get_tensor("sentences").tobytes().decode().split("\n")
    except VectorsError:
        raise
    except (SafetensorError, OSError, EOFError, ValueError, KeyError) as error:
        raise VectorsError(f"{path}: truncated or damaged, it can't be read ({' '.join(str(error).split())}); {AGAIN}"
                           ) from None
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind != "f":
        raise VectorsError(f"{path}: holds {rows.dtype} numbers of shape {rows.shape}, and vectors are real numbers "
                           f"of shape (sentences, size); {AGAIN}")
    if not np.isfinite(rows).all():
        raise VectorsError(f"{path}: not every number in it is finite; {AGAIN}")
    if sentences is not None and len(sentences) != len(rows):
        raise VectorsError(f"{path}: {len(sentences)} sentences for {len(rows)} vectors; {AGAIN}")
    return Vectors(rows.astype(np.float32), sentences, made)


# ---- commands ----------------------------------------------------------------------------------------------------

def add_vectors(command, add_precision) -> None:
    """The two commands' options; `command` is the maker of subcommands in cli.py."""
    sub = command("embed", command_embed, "write the vectors of a file of sentences", [
        "minbert embed sentences.txt --out vectors.safetensors",
        "minbert embed sentences.txt --out vectors.npy --model runs/sts-cosine/… --pooling pooler --again",
        "minbert embed sentences.txt --out vectors.safetensors --model runs/lora-r16/… --task sts"])
    sub.add_argument("file", help="a text file with one sentence a line; - reads standard input")
    sub.add_argument("--out", required=True, metavar="FILE", help="ends with .safetensors (vectors, sentences, how they were "
                     "made) or .npy (vectors alone)")
    sub.add_argument("--again", action="store_true", help="replace FILE if it is there")
    sub.add_argument("--model", default="minilm", help="minilm, a run's directory, a directory with config.json and "
                     "model.safetensors, or a hub name (default: minilm)")
    sub.add_argument("--task", help="of a run of several tasks: whose vectors")
    sub.add_argument("--pooling", choices=POOLINGS, default="mean", help="mean of the tokens, or the model's pooler "
                     "on [CLS] (default: mean)")
    sub.add_argument("--no-normalise", dest="normalise", action="store_false", help="keep the vectors' own lengths")
    sub.add_argument("--max-length", type=int, default=128, metavar="N", help="word pieces a sentence, the rest is cut "
                     "(default: 128)")
    sub.add_argument("--quiet", action="store_true", help="no bar")
    _add_device(sub, add_precision)

    sub = command("similar", command_similar, "find the sentences of a file of vectors that are nearest to a query", [
        'minbert similar vectors.safetensors "A film about the sea." "Dull."',
        "minbert similar vectors.npy --sentences sentences.txt --file queries.txt --top 3 --json"])
    sub.add_argument("vectors", help="what minbert embed wrote")
    sub.add_argument("query", nargs="*", help="sentences; without any, one a line from --file")
    sub.add_argument("--file", help="a text file with one query a line; - reads standard input")
    sub.add_argument("--top", type=int, default=5, metavar="N", help="how many for each query (default: 5)")
    sub.add_argument("--sentences", metavar="FILE", help="the text file that a .npy was made from")
    sub.add_argument("--model", help="for a .npy: the model it was made with (default: minilm); otherwise, where that model "
                     "is now")
    sub.add_argument("--task", help="for a .npy: the task it was made with, in a run of several")
    sub.add_argument("--pooling", choices=POOLINGS, help="for a .npy: the pooling it was made with (default: mean)")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")
    _add_device(sub, add_precision)


def _add_device(sub, add_precision) -> None:
    """Where the vectors are computed."""
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_precision(sub, "auto")


def command_embed(options) -> int:
    """Write the vectors of a file of sentences."""
    sentences = sentences_of(options.file)
    path = check_out(options.out, options.again)

    from minbert.run import device
    from minbert.run.batching import Tokenised

    arithmetic = device.choose(options.device, options.precision)
    embedder = load_embedder(options.model, options.task)
    rows, cut = embed_sentences(embedder, sentences, options.pooling, options.normalise, options.max_length, arithmetic,
                                progress=not options.quiet)
    made = {"model": options.model, "task": options.task, "sha256": embedder.sha256, "pooling": options.pooling,
            "normalised": options.normalise, "max_length": options.max_length}
    write_vectors(path, rows, sentences, made)
    if cut:
        print(Tokenised([None] * len(sentences), cut, options.max_length).note, file=sys.stderr)
    _warn_smoke(embedder)
    print(f"{path}: {rows.shape[0]} sentences, {rows.shape[1]} numbers each ({options.model}, "
          f"{'mean of the tokens' if options.pooling == 'mean' else 'pooler'}, "
          f"{'length 1' if options.normalise else 'their own lengths'})")
    return 0


def _warn_smoke(embedder) -> None:
    """A run of size smoke has learned nothing."""
    if embedder.smoke:
        print("plumbing only: this model has learned nothing, its vectors mean nothing", file=sys.stderr)


def command_similar(options) -> int:
    """Find the nearest sentences."""
    if options.query and options.file:
        raise VectorsError("give queries or --file, not both")
    if not options.query and not options.file:
        raise VectorsError('nothing to look for: give a sentence, such as minbert similar vectors.safetensors "What a film."')
    if options.top < 1:
        raise VectorsError(f"--top {options.top}: give 1 or more")
    queries = options.query or sentences_of(options.file)
    try:
        "".join(queries).encode()
    except UnicodeError:
        raise VectorsError("the query: can't be read (not UTF-8): give it in the encoding UTF-8") from None
    queries = [query.strip() for query in queries if query.strip()]
    if not queries:
        raise VectorsError("the query is empty: give a sentence")
    stored = read_vectors(options.vectors)
    sentences = stored.sentences
    if options.sentences:
        sentences = sentences_of(options.sentences)
        if len(sentences) != len(stored.rows) or stored.sentences not in (None, sentences):
            raise VectorsError(f"{options.sentences}: its {len(sentences)} sentences are not those of the {len(stored.rows)} "
                               f"vectors in {options.vectors}: name the file that these were made from")
    if sentences is None:
        raise VectorsError(f"{options.vectors}: a .npy holds no sentences: name the text file it was made from by --sentences")

    from minbert.run import device

    made = stored.made
    pooling = options.pooling or made.get("pooling", "mean")
    if made and pooling != made["pooling"]:
        raise VectorsError(f"{options.vectors}: made with --pooling {made['pooling']}; leave --pooling out")
    task = options.task or made.get("task")
    if made and task != made.get("task"):
        raise VectorsError(f"{options.vectors}: made with {'--task ' + made['task'] if made.get('task') else 'no --task'}; "
                           "leave --task out")
    arithmetic = device.choose(options.device, options.precision)
    embedder = load_embedder(options.model or made.get("model", "minilm"), task)
    if embedder.size != stored.rows.shape[1]:
        raise VectorsError(f"{options.vectors}: its vectors have {stored.rows.shape[1]} numbers and those of {embedder.name} "
                           f"{embedder.size}: name the model it was made with by --model")
    if made and embedder.sha256 != made["sha256"]:
        raise VectorsError(f"{options.vectors}: made with other weights than those of {embedder.name} now: name their place "
                           "by --model, or make it again with minbert embed")
    longest = min(made.get("max_length", 128), embedder.longest)
    asked, cut = embed_sentences(embedder, queries, pooling, True, longest, arithmetic)
    _warn_smoke(embedder)
    if cut:
        print(f"{cut} of {len(queries)} queries were longer than {longest} word pieces and were cut", file=sys.stderr)
    for query, found in zip(queries, nearest_sentences(stored.rows, asked, options.top)):
        if not options.json:
            print(query)
        for rank, (row, cosine) in enumerate(found, 1):
            if options.json:
                print(json.dumps({"query": query, "rank": rank, "cosine": round(cosine, 4), "row": row,
                                  "sentence": sentences[row]}, ensure_ascii=False))
            else:
                print(f"  {rank}  {cosine:5.2f}  {sentences[row]}")
    return 0
