"""Two sentences: are they paraphrases, how similar are they? Ways to read a pair, heads and losses (chapter 7).

A pair is read *joined*, as one sequence [CLS] a [SEP] b [SEP], or *apart*: each sentence alone through the same encoder,
all first and all second sentences in one forward pass.

Sources: Devlin et al. 2019, section 4.1 (joined pairs); Reimers & Gurevych 2019, section 3 (u, v, |u - v|, cosine);
report S0, section 4 and appendix A (fixed cosine logits, vector pooling, cross-attention); S1 (BCE, MSE); S3 (projection);
S4 (Huber, the additive head).
"""

import torch
from torch import nn
from torch.nn import functional as F

from minbert.attention import attention, mask_bias, merge_heads, split_heads
from minbert.classify import TaskModel
from minbert.embeddings import mean_pool

# ---- reading a pair ----------------------------------------------------------------------------------------------


def joined_ids(first, second, max_length=128):
    """[CLS] a [SEP] and [CLS] b [SEP] to [CLS] a [SEP] b [SEP].

    Args:
        first, second: lists of piece ids with [CLS] and [SEP], as `minbert.tokens.encode` returns them.
        max_length: if the pair is longer, the longer of the two loses its last pieces (each keeps its [SEP]).

    Returns:
        ids, token types (0 up to the first [SEP], then 1), and whether the pair was cut.

    Raises:
        ValueError: a `max_length` with no room for a piece of each side.
    """
    if max_length < 5:
        raise ValueError(f"max_length must be at least 5 for a pair ([CLS] a [SEP] b [SEP]), not {max_length}")
    a, b = first[:-1], second[1:-1]  # [CLS] a · b
    over = len(a) + len(b) + 2 - max_length
    # Cut what is longer until both are equally long, then both alike.
    for _ in range(max(0, over)):
        if len(a) - 1 > len(b):
            a = a[:-1]
        else:
            b = b[:-1]
    end = first[-1:]  # [SEP]
    return a + end + b + end, [0] * (len(a) + 1) + [1] * (len(b) + 1), over > 0


# ---- heads on two sentence vectors -------------------------------------------------------------------------------


def cosine_logits(cosine, outputs):
    """Report S0's fixed map from a cosine to class scores (its appendix A; the minus signs are restored).

    Args:
        cosine: (B,).
        outputs: 2 for paraphrase: [1 - c, c]; 6 for similarity in classes 0 to 5:
            [1 - c, 1 - |c + .2|, 1 - |c - .1|, 1 - |c - .4|, 1 - |c - .7|, c].

    Returns:
        (B, outputs). Two limits are built in: class 1 of the six can never be the largest, and the probability of a
        paraphrase is at most σ(1) = 0.731.

    Raises:
        ValueError: another number of outputs.
    """
    c = cosine
    if outputs == 2:
        return torch.stack([1 - c, c], dim=-1)  # (B, 2)
    if outputs == 6:
        between = [1 - (c - middle).abs() for middle in (-0.2, 0.1, 0.4, 0.7)]
        return torch.stack([1 - c, *between, c], dim=-1)  # (B, 6)
    raise ValueError(f"the fixed cosine logits are for 2 or 6 classes, not {outputs}")


class CosineHead(nn.Module):
    """Class scores from the cosine of the two vectors: S0's fixed map, or the same with a learned scale and shift.

    Args:
        outputs: 2 or 6.
        learned: with it, scores = scale · fixed + shift, one scale for all classes and one shift for each. It begins as
            the fixed map, and both limits of it can be learned away.
    """

    def __init__(self, outputs, learned=False):
        super().__init__()
        self.outputs = outputs
        self.learned = learned
        if learned:
            self.scale = nn.Parameter(torch.ones(()))
            self.shift = nn.Parameter(torch.zeros(outputs))

    def forward(self, u, v):
        """u and v (B, D) to (B, outputs)."""
        scores = cosine_logits(F.cosine_similarity(u, v), self.outputs)  # (B, outputs)
        return self.scale * scores + self.shift if self.learned else scores


class CosineScore(nn.Module):
    """The cosine itself, (B, 1): Sentence-BERT's regression objective compares it with label / 5."""

    def forward(self, u, v):
        return F.cosine_similarity(u, v).unsqueeze(-1)  # (B, 1)


class VectorHead(nn.Module):
    """A linear layer on [u; v; |u - v|] (Reimers & Gurevych 2019, section 3; S0's vector pooling; S2).

    |u - v| is what lets a linear layer compare: each of its numbers says how far apart u and v are in one direction.
    """

    def __init__(self, hidden_size, outputs):
        super().__init__()
        self.linear = nn.Linear(3 * hidden_size, outputs)

    def forward(self, u, v):
        return self.linear(torch.cat([u, v, (u - v).abs()], dim=-1))  # (B, outputs)


class AdditiveHead(nn.Module):
    """A linear layer on [u; v], as report S4 has it: the negative example of chapter 7.

    It computes w₁·u + w₂·v + b, a number for u plus a number for v. How u fits v can't enter.
    """

    def __init__(self, hidden_size, outputs):
        super().__init__()
        self.linear = nn.Linear(2 * hidden_size, outputs)

    def forward(self, u, v):
        return self.linear(torch.cat([u, v], dim=-1))  # (B, outputs)


def head_layers(size, outputs, hidden=0, dropout=0.1):
    """A linear layer, or with `hidden` two hidden layers with ReLU and dropout before it ("deeper heads")."""
    if not hidden:
        return nn.Linear(size, outputs)
    return nn.Sequential(
        nn.Linear(size, hidden), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs),
    )  # fmt: skip


# ---- models ------------------------------------------------------------------------------------------------------


class JoinedPairs(TaskModel):
    """[CLS] a [SEP] b [SEP] → encoder → pooled [CLS] vector → dropout → head.

    Args:
        encoder: `encoder(input_ids, attention_mask, token_type_ids)` returns hidden (B, T, D) and pooled (B, D).
        outputs: numbers a pair.
        hidden: size of the two hidden layers of a deeper head; 0 for one linear layer.
        dropout: before the head, and inside a deeper one.
    """

    apart = False

    def __init__(self, encoder, outputs, hidden=0, dropout=0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = head_layers(encoder.hidden_size, outputs, hidden, dropout)

    def forward(self, input_ids, attention_mask, token_type_ids):
        """(B, T) each to (B, outputs)."""
        _, pooled = self.encoder(input_ids, attention_mask, token_type_ids)  # (B, D)
        return self.head(self.dropout(pooled))


class ApartPairs(TaskModel):
    """Each sentence alone through the same encoder ("Siamese"), then a head on the two vectors.

    The batch holds the B first sentences and then the B second ones: one forward pass for both sides.

    Args:
        encoder: as for `JoinedPairs`.
        head: a module, `head(u, v)` → (B, outputs).
        pooling: "pooler" (the pooled [CLS] vector) or "mean" (over the tokens, padding left out).
        projection: size of a linear layer on each vector (report S3: 256); 0 for none.
        dropout: on the vectors, in training only.
    """

    apart = True

    def __init__(self, encoder, head, pooling="pooler", projection=0, dropout=0.1):
        super().__init__()
        if pooling not in ("pooler", "mean"):
            raise ValueError(f"pooling: {pooling!r} is none of pooler, mean")
        self.encoder, self.head, self.pooling = encoder, head, pooling
        self.projection = nn.Linear(encoder.hidden_size, projection) if projection else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def embed(self, input_ids, attention_mask):
        """The sentence vectors: (N, T) to (N, D), or (N, projection)."""
        # BEGIN embed
        hidden, pooled = self.encoder(input_ids, attention_mask)
        return self.projection(mean_pool(hidden, attention_mask) if self.pooling == "mean" else pooled)
        # END embed

    def forward(self, input_ids, attention_mask):
        """(2B, T) each to (B, outputs).  Raises ValueError for an odd number of sentences."""
        if len(input_ids) % 2:
            raise ValueError(f"{len(input_ids)} sentences are no pairs: 2B are needed")
        # BEGIN compare
        u, v = self.dropout(self.embed(input_ids, attention_mask)).chunk(2)  # (B, D) each
        return self.head(u, v)
        # END compare


CROSS_FORMS = ("printed", "standard", "both")


class CrossAttention(nn.Module):
    """Attention from the tokens of one sentence to those of another.

    Args:
        hidden_size, heads, dropout: as for `MultiHeadAttention`.
        form: "standard": queries from the first sentence, keys and values from the second. "printed": the formula of
            report S0: queries *and keys* from the first, values from the second, with the second's mask, so the weights
            never see the sentence that they weigh.
    """

    def __init__(self, hidden_size, heads, dropout=0.1, form="standard"):
        super().__init__()
        if form not in ("printed", "standard"):
            raise ValueError(f"form: {form!r} is none of printed, standard")
        self.heads, self.dropout, self.form = heads, dropout, form
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(self, first, second, second_mask):
        """first (B, T, D), second (B, S, D) and its mask (B, S) to (B, T, D). The printed form needs T = S."""
        # BEGIN forward
        keys_from = second if self.form == "standard" else first
        if keys_from.shape[1] != second.shape[1]:
            raise ValueError("the printed form pairs each key of sentence 1 with a value of sentence 2: "
                             f"pad both to one length (here {first.shape[1]} and {second.shape[1]})")
        q = split_heads(self.query(first), self.heads)  # (B, H, T, Dh)
        k = split_heads(self.key(keys_from), self.heads)  # (B, H, S, Dh)
        v = split_heads(self.value(second), self.heads)  # (B, H, S, Dh)
        dropout = self.dropout if self.training else 0.0
        context, _ = attention(q, k, v, mask_bias(second_mask, first.dtype), dropout)  # (B, H, T, Dh)
        return self.output(merge_heads(context))  # (B, T, D)
        # END forward


class CrossPairs(TaskModel):
    """Each sentence through the encoder, then attention between their tokens, then a linear layer.

    Report S0 does not say how the result is read. Our choice: an output projection, a residual connection to the asking
    sentence, and the mean over its tokens.

    Args:
        encoder: as for `JoinedPairs`; `encoder.config.heads` heads are used.
        outputs: numbers a pair.
        form: "printed", "standard" or "both" (standard from each side to the other; S0's own future work).
        dropout: on the attention, and on the vector before the linear layer.
    """

    apart = True

    def __init__(self, encoder, outputs, form="standard", dropout=0.1):
        super().__init__()
        if form not in CROSS_FORMS:
            raise ValueError(f"form: {form!r} is none of {', '.join(CROSS_FORMS)}")
        self.encoder, self.form = encoder, form
        size, heads = encoder.hidden_size, encoder.config.heads
        one_way = "printed" if form == "printed" else "standard"
        self.cross = CrossAttention(size, heads, dropout, one_way)
        self.back = CrossAttention(size, heads, dropout, one_way) if form == "both" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * size if form == "both" else size, outputs)

    def forward(self, input_ids, attention_mask):
        """(2B, T) each to (B, outputs)."""
        hidden, _ = self.encoder(input_ids, attention_mask)  # (2B, T, D)
        (first, second), (mask1, mask2) = hidden.chunk(2), attention_mask.chunk(2)
        vectors = [mean_pool(first + self.cross(first, second, mask2), mask1)]  # (B, D)
        if self.back is not None:
            vectors.append(mean_pool(second + self.back(second, first, mask1), mask2))
        return self.head(self.dropout(torch.cat(vectors, dim=-1)))


class ProjectedHeads(TaskModel):
    """One encoder, a projection, and several small heads on it (report S3: 256 numbers, sign and score of a sentence).

    Args:
        encoder: as for `JoinedPairs`.
        outputs: {head's name: numbers a sentence}.
        projection: size of the shared linear layer on the sentence vector.
        pooling, dropout: as for `ApartPairs`.

    Raises:
        ValueError: unknown pooling.
    """

    def __init__(self, encoder, outputs, projection=256, pooling="mean", dropout=0.1):
        super().__init__()
        if pooling not in ("pooler", "mean"):
            raise ValueError(f"pooling: {pooling!r} is none of pooler, mean")
        self.encoder, self.pooling = encoder, pooling
        self.projection = nn.Linear(encoder.hidden_size, projection)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({name: nn.Linear(projection, size) for name, size in outputs.items()})

    def embed(self, input_ids, attention_mask):
        """The projected sentence vectors: (B, T) to (B, projection)."""
        hidden, pooled = self.encoder(input_ids, attention_mask)
        return self.projection(mean_pool(hidden, attention_mask) if self.pooling == "mean" else pooled)

    def forward(self, input_ids, attention_mask, head):
        """(B, T) each to the outputs of one head, (B, its size)."""
        return self.heads[head](self.dropout(self.embed(input_ids, attention_mask)))


# ---- objectives --------------------------------------------------------------------------------------------------

# How many numbers a pair each objective needs, by task.
OBJECTIVES = {
    "paraphrase": {"ce2": 2, "bce": 1},
    "similarity": {"classes": 6, "mse": 1, "huber": 1, "cosine": 1},
}
WIDTH = {name: count for known in OBJECTIVES.values() for name, count in known.items()}
# Which objectives each head can serve: a cosine has a map of its own to classes, a free head can learn any number.
FREE = ("ce2", "bce", "classes", "mse", "huber")
HEADS = {
    "joined": FREE,
    "joined-deep": FREE,
    "cosine-fixed": ("ce2", "classes"),
    "cosine-learned": ("ce2", "classes"),
    "cosine": ("cosine",),
    "vector": FREE,
    "additive": FREE,
    "cross-printed": FREE,
    "cross-standard": FREE,
    "cross-both": FREE,
}


def check_fit(task, head, objective):
    """Refuse a task, head and objective that don't fit together.

    Raises:
        ValueError: the message says what would fit.
    """
    if task not in OBJECTIVES:
        raise ValueError(f"task {task!r} is none of {', '.join(OBJECTIVES)}")
    if head not in HEADS:
        raise ValueError(f"head {head!r} is none of {', '.join(HEADS)}")
    if objective not in OBJECTIVES[task]:
        raise ValueError(f"objective {objective!r} does not fit the task {task}; it takes {', '.join(OBJECTIVES[task])}")
    if objective not in HEADS[head]:
        fitting = [name for name in HEADS[head] if name in OBJECTIVES[task]]
        raise ValueError(f"head {head!r} can't serve {objective!r} for {task}; " + (
            f"it takes {', '.join(fitting)}" if fitting else
            f"heads for it: {', '.join(name for name, known in HEADS.items() if objective in known)}"))


def pair_model(encoder, task, head, objective, pooling="pooler", projection=0, hidden=256, dropout=0.1):
    """The model of a task, head and objective by name, see `OBJECTIVES` and `HEADS`.

    `pooling` and `projection` are for heads on two sentence vectors, `hidden` is for "joined-deep"; other heads have none.

    Raises:
        ValueError: see `check_fit`; or an unknown pooling.
    """
    check_fit(task, head, objective)
    outputs = OBJECTIVES[task][objective]
    size = projection or encoder.hidden_size
    if head in ("joined", "joined-deep"):
        return JoinedPairs(encoder, outputs, hidden if head == "joined-deep" else 0, dropout)
    if head.startswith("cross-"):
        return CrossPairs(encoder, outputs, head.removeprefix("cross-"), dropout)
    made = {
        "cosine-fixed": lambda: CosineHead(outputs), "cosine-learned": lambda: CosineHead(outputs, learned=True),
        "cosine": CosineScore, "vector": lambda: VectorHead(size, outputs), "additive": lambda: AdditiveHead(size, outputs),
    }[head]()  # fmt: skip
    return ApartPairs(encoder, made, pooling, projection, dropout)


def nearest_class(labels):
    """Similarity labels 0 to 5 as classes: rounded to the nearest integer (.5 upwards), never cut off. (B,) int64."""
    return (labels + 0.5).floor().long()


def pair_loss(objective, outputs, labels, delta=1.0):
    """The mean loss of a batch.

    Args:
        objective: "ce2": cross-entropy of two scores (S0). "bce": binary cross-entropy of one (S1, S4). "classes":
            cross-entropy of six, the label rounded (S0). "mse": mean squared error of a score on the labels' scale (S1).
            "huber": the same with Huber's loss (S4). "cosine": mean squared error of a cosine with label / 5 (S2).
        outputs: (B, K), scores as the head gives them: no sigmoid, no softmax.
        labels: (B,), 0 or 1 for paraphrase, 0 to 5 for similarity.
        delta: where Huber's loss changes from square to straight.

    Raises:
        ValueError: unknown objective, or outputs or labels of another shape: broadcasting would hide that.
    """
    if objective not in WIDTH:
        raise ValueError(f"objective {objective!r} is none of {', '.join(WIDTH)}")
    if labels.ndim != 1:
        raise ValueError(f"{objective} needs labels of shape (B,), not {tuple(labels.shape)}")
    if outputs.shape != (len(labels), WIDTH[objective]):
        raise ValueError(f"{objective} needs outputs of shape {(len(labels), WIDTH[objective])}, not {tuple(outputs.shape)}")
    outputs, labels = outputs.float() if outputs.dtype != torch.float64 else outputs, labels.to(outputs.device)
    if objective == "ce2":
        return F.cross_entropy(outputs, labels.long())
    if objective == "classes":
        return F.cross_entropy(outputs, nearest_class(labels))
    score, labels = outputs[:, 0], labels.to(outputs.dtype)  # (B,), also for a batch of one
    if objective == "bce":
        return F.binary_cross_entropy_with_logits(score, labels)
    if objective == "mse":
        return F.mse_loss(score, labels)
    if objective == "huber":
        return F.huber_loss(score, labels, delta=delta)
    return F.mse_loss(score, labels / 5)


def pair_prediction(objective, outputs, expectation=False):
    """What the outputs (B, K) say, on the labels' scale: (B,).

    0 or 1 for paraphrase. For similarity a number from 0 to 5: the most probable class, or with `expectation` the mean
    Σ k·p_k of the classes; the score of a regression as it is; five times the cosine.

    Raises:
        ValueError: unknown objective.
    """
    if objective not in WIDTH:
        raise ValueError(f"objective {objective!r} is none of {', '.join(WIDTH)}")
    if objective in ("ce2", "classes"):
        if expectation and objective == "classes":
            return outputs.softmax(dim=-1) @ torch.arange(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        return outputs.argmax(dim=-1)
    if objective == "bce":
        return (outputs[:, 0] > 0).long()
    return 5 * outputs[:, 0] if objective == "cosine" else outputs[:, 0]
