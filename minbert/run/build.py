"""From a configuration to an encoder and its tokenizer; and from a checkpoint's directory back to a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from minbert.attention import OneAttentionLayer
from minbert.bert import BertConfig, BertModel
from minbert.classify import SentenceClassifier
from minbert.embeddings import BagOfEmbeddings
from minbert.fast import use_cls_only, use_fast
from minbert.lora import add_lora, use_task
from minbert.multitask import MultiTaskModel
from minbert.pairs import ProjectedHeads, pair_model
from minbert.pretrained import WeightsError, find_weights, load_pretrained
from minbert.run import checkpoint
from minbert.run.recipes import PAIRS, Config, find, slug, source_name, tasks_of
from minbert.squad import SpanExtractor
from minbert.tokens import load_tokenizer, train_wordpiece


@dataclass
class Start:
    """What training starts from."""

    encoder: object
    shape: dict                    # enough to build the encoder again, see `encoder_of`
    tokenizer: object
    weights: dict                  # for the record: name, sha256 (None for random weights), vocabulary


def start(config: Config, texts: list[str], runs="runs") -> Start:
    """The encoder and tokenizer that a configuration asks for.  `texts` are used only to learn a vocabulary of its own.

    `config.weights` is one of
      "scratch"      no weights and no vocabulary: both are made here
      "run:RECIPE"   what an earlier run of that recipe has pre-trained, found under the directory `runs`
      anything else  see `minbert.pretrained.find_weights`
    With `init="random"`, only the shape and the vocabulary are taken from there.

    Raises WeightsError when there is nothing of that name; ValueError when the sentences are longer than the model allows.
    """
    if config.weights == "scratch":
        tokenizer = train_wordpiece(texts, vocab_size=config.vocab_size)
        weights = {"name": "random", "sha256": None, "vocabulary": f"{tokenizer.get_vocab_size()} pieces, learned here"}
        shape = shape_of(config, tokenizer.get_vocab_size())
        return Start(encoder_of(config.encoder, shape), shape, tokenizer, weights)

    source, name = config.weights, source_name(config.weights)
    if source.startswith("run:"):
        source = pretrained_run(source.removeprefix("run:"), config, runs)
        name = f"{config.weights} ({Path(source).parent.name})"

    if config.init == "pretrained":
        encoder, tokenizer, info = load_pretrained(str(source), dropout=config.dropout)
        shape = asdict(encoder.config)
        weights = {"name": name, "sha256": info.sha256, "vocabulary": name}
    else:
        directory = find_weights(str(source))
        tokenizer = load_tokenizer(directory)
        if config.encoder == "bert":
            bert = BertConfig.from_json(directory / "config.json")
            bert.hidden_dropout = bert.attention_dropout = config.dropout
            shape = asdict(bert)
        else:
            shape = shape_of(config, tokenizer.get_vocab_size())
        encoder = encoder_of(config.encoder, shape)
        weights = {"name": "random", "sha256": None, "vocabulary": name}
    most = shape.get("max_positions", 512)
    if config.max_length > most:
        raise ValueError(f"max_length {config.max_length} is more than the {most} positions that {name} has; "
                         f"give --max-length {most} or less")
    return Start(encoder, shape, tokenizer, weights)


def shape_of(config: Config, vocab_size: int) -> dict:
    """The shape of an encoder that is built from the configuration's own sizes."""
    if config.encoder == "bag":
        return dict(vocab_size=vocab_size, hidden_size=config.hidden_size, dropout=config.dropout)
    if config.encoder == "attention":
        return dict(vocab_size=vocab_size, hidden_size=config.hidden_size, heads=config.heads, dropout=config.dropout)
    return asdict(BertConfig(
        vocab_size=vocab_size, hidden_size=config.hidden_size, layers=config.layers, heads=config.heads,
        intermediate_size=config.intermediate_size, max_positions=max(config.max_length, 128),
        hidden_dropout=config.dropout, attention_dropout=config.dropout,
    ))


def encoder_of(kind: str, shape: dict):
    """A new encoder of a kind ("bert", "attention" or "bag") and shape, with random weights."""
    if kind == "bag":
        return BagOfEmbeddings(**shape)
    if kind == "attention":
        return OneAttentionLayer(**shape)
    return BertModel(BertConfig(**shape))


def pretrained_run(recipe: str, config: Config, runs) -> Path:
    """The encoder's directory of an earlier run, of the same size and on the same data; the lowest seed if there are more."""
    find(recipe)
    data = slug(source_name(config.data))
    found = sorted(Path(runs).glob(f"{recipe}/{config.size}-*-{data}-*/encoder/model.safetensors"))
    if not found and config.data == "hub":           # no help to name a command that can't work
        raise WeightsError(
            f"this needs a finished run of {recipe} on the same data, and text for pre-training is read from files, not from the "
            "hub: give both runs --data and a directory in the course's format, or --data builtin"
        )
    if not found:
        raise WeightsError(
            f"this needs a finished run of {recipe} on the same data, and there is none under {source_name(runs)}/. "
            f"Run it first: minbert run {recipe} --size {config.size} --data {config.data}"
        )
    return found[0].parent


def model_on(encoder, config: Config, name: str, classes: int = 0):
    """The model of one task on an encoder, as the configuration says.  `classes`: of a task of single sentences."""
    if name in PAIRS:
        kind, objective = pair_objective(config, name)
        return pair_model(encoder, kind, config.pair_head, objective, config.pooling, config.projection,
                          dropout=config.head_dropout)
    if name == "squad":
        return SpanExtractor(encoder)
    return SentenceClassifier(encoder, 1 if name == "score" else classes, config.head_dropout)


def pair_objective(config: Config, name: str) -> tuple[str, str]:
    """("paraphrase" or "similarity", its objective) of a pair task, see `minbert.pairs.OBJECTIVES`."""
    return ("paraphrase", config.paraphrase) if name == "quora" else ("similarity", config.similarity)


class OneHead(nn.Module):
    """A model with several heads, asked through one of them."""

    def __init__(self, model, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids, attention_mask, self.name)


def join(encoder, config: Config, models: dict):
    """Several tasks' models on one encoder; or, for S3's two readings of a sentence, a projection and two heads on it.

    Returns the whole model, and {task: the model to ask for its answers}.
    """
    if not config.projection or set(models) - {"sign", "score"}:
        return MultiTaskModel(encoder, models), models
    sizes = {"sign": 2, "score": 1}
    whole = ProjectedHeads(encoder, {name: sizes[name] for name in models}, config.projection, config.pooling,
                           config.head_dropout)
    return whole, {name: OneHead(whole, name) for name in models}


def adapt(encoder, config: Config, names) -> None:
    """Put an adapter for each task around the encoder's matrices, if the configuration asks for it."""
    if config.adapt == "lora":
        add_lora(encoder, names, config.lora_r, config.lora_alpha, scaling=config.lora_scaling,
                 feed_forward=config.lora_feed_forward)


def load_task_model(path, tensors: dict, meta: dict, task: str):
    """The model of one task from a checkpoint that has been read, in evaluation mode.

    Raises CheckpointError when the tensors are not those of the configuration in `meta`.
    """
    config = Config(**{key: value for key, value in meta["config"].items() if key in Config.__dataclass_fields__})
    names = tasks_of(config)
    encoder = encoder_of(config.encoder, meta["shape"])
    labels = meta.get("label_names_of") or {names[0]: meta.get("label_names", ())}
    models = {name: model_on(encoder, config, name, len(labels.get(name, ()))) for name in names}
    whole, models = join(encoder, config, models) if len(names) > 1 else (models[task], models)
    adapt(encoder, config, names)
    checkpoint.fit(whole, tensors, path)
    use_fast(whole, config.attention == "fast")
    if config.last_layer == "cls":
        use_cls_only(whole)
    if config.adapt == "lora":
        use_task(encoder, task)
    return (whole.alone(task) if isinstance(whole, MultiTaskModel) else models[task]).eval()


def load_classifier(directory, task=None):
    """The best checkpoint of a run: (the model of a task of single sentences in evaluation mode, tokenizer, meta).

    The directory holds all that is needed.  `meta` has config, task, label_names, epoch and metrics.  `task`: which, in a run of
    several; None: the first that has classes.
    Raises CheckpointError when there is no checkpoint, or it is damaged, or it is no sentence classifier.
    """
    path = best_checkpoint(directory)
    tensors, meta = checkpoint.load(path)
    labels = {name: names for name, names in meta.get("label_names_of", {}).items() if name != "score"}
    if "label_names" in meta and meta["config"]["task"] != "score":
        labels = {meta["config"]["task"]: meta["label_names"]}
    if not labels and "spans" in meta:
        raise checkpoint.CheckpointError(f"{path}: this model answers questions and has no classes: use 'minbert ask'")
    if not labels and meta["config"]["task"] == "mlm":
        raise checkpoint.CheckpointError(f"{path}: a pre-trained language model has no classes to predict; "
                                         "fine-tune it first (minbert run small-bert-pretrained)")
    if not labels:
        raise checkpoint.CheckpointError(f"{path}: this model ({meta['config']['task']}) has no classes for a sentence; "
                                         "'minbert run first-finetune' makes one")
    task = task or next(iter(labels))
    if task not in labels:
        raise checkpoint.CheckpointError(f"{path}: there are no classes of {task!r} in it, only of {', '.join(labels)}")
    model = load_task_model(path, tensors, meta, task)
    return model, run_tokenizer(directory), {**meta, "task": task, "label_names": labels[task]}


def load_span_model(directory):
    """The best checkpoint of a run on SQuAD: (SpanExtractor in evaluation mode, tokenizer, meta).

    Of a run on several tasks with a common encoder, the part that answers questions. `meta` has config, epoch, metrics and
    spans (how passages are cut, see `minbert.run.windows.WindowSettings`).
    Raises CheckpointError when there is no checkpoint, or it is damaged, or it answers no questions.
    """
    path = best_checkpoint(directory)
    tensors, meta = checkpoint.load(path)
    if "spans" not in meta:
        raise checkpoint.CheckpointError(f"{path}: this model answers no questions: train one by 'minbert run squad'")
    return load_task_model(path, tensors, meta, "squad"), run_tokenizer(directory), meta


def run_tokenizer(directory):
    """The tokenizer that a run has kept.  Raises CheckpointError."""
    try:
        return load_tokenizer(Path(directory))
    except (FileNotFoundError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{directory}: its tokenizer can't be used ({error}); "
                                         "train again with --again") from None


def best_checkpoint(directory) -> Path:
    """The file best-<epoch>.safetensors of a run's directory.  Raises CheckpointError when there is none."""
    directory = Path(directory)
    if directory.is_file():
        raise checkpoint.CheckpointError(f"{directory}: this is a file, and a run's directory is needed: "
                                         f"give its directory, {directory.parent}")
    found = sorted(directory.glob("best-*.safetensors"))
    if not directory.exists():
        raise checkpoint.CheckpointError(f"{directory}: no such directory; 'minbert run first-finetune' makes one")
    if not found:
        raise checkpoint.CheckpointError(f"{directory}: no checkpoint here (a directory with best-….safetensors is needed); "
                                         "'minbert run first-finetune' makes one")
    return found[-1]
