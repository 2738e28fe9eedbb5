"""A sentence in, a class out: the head on top of an encoder, and what may be trained (chapter 5).

Source: Devlin et al. 2019, section 4.1 (a linear layer on the pooled [CLS] vector); freezing as in the reports
S0 ("pretrain"), S2 and S3.
"""

from torch import nn


class TaskModel(nn.Module):
    """An encoder with something on top. What `freeze` has frozen in it stays in evaluation mode while the rest trains."""

    def __init__(self):
        super().__init__()
        self.frozen = []  # filled by `freeze`

    def train(self, mode=True):
        """As in every module; but what is frozen stays in evaluation mode: no dropout in a part that doesn't learn."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


class SentenceClassifier(TaskModel):
    """An encoder, dropout, and one linear layer from the sentence vector to the class scores.

    Args:
        encoder: any encoder of this book: `encoder(input_ids, attention_mask, token_type_ids)` returns
            hidden (B, T, D) and pooled (B, D).
        classes: K.
        dropout: on the sentence vector, in training only.
    """

    def __init__(self, encoder, classes, dropout=0.1):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.hidden_size, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """(B, T) to logits (B, K): scores, not probabilities. Cross-entropy takes them as they are."""
        _, pooled = self.encoder(input_ids, attention_mask, token_type_ids)  # (B, D)
        return self.head(self.dropout(pooled))  # (B, K)


FREEZE_MODES = ("none", "embeddings", "partial", "full", "head", "all")


def freeze(model, mode, layers=0, frozen_dropout=False):
    """Choose what fine-tuning may change.

    Args:
        model: a `SentenceClassifier`.
        mode: what keeps its values. "none": nothing, everything learns. "embeddings": these alone. "partial": the
            embeddings and the first `layers` layers. "full": the whole encoder, its pooler too; only the head learns.
            "head": only the head; the encoder learns. "all": everything, so that nothing is left to train.
        layers: for "partial".
        frozen_dropout: keep dropout in the frozen parts while training (off by default).

    Returns:
        the model. Frozen parameters have `requires_grad = False`, so they are in no optimizer and see no
        weight decay; calling again with "none" undoes it.

    Raises:
        ValueError: unknown mode, an encoder without embeddings or layers to freeze, or more layers than there are.
    """
    if mode not in FREEZE_MODES:
        raise ValueError(f"freeze: {mode!r} is none of {', '.join(FREEZE_MODES)}")
    if mode in ("embeddings", "partial"):
        part = "layers" if mode == "partial" else mode
        if not hasattr(model.encoder, part):
            raise ValueError(f"freeze: {type(model.encoder).__name__} has no {part}, so it can't be frozen in part")
    # BEGIN choose
    frozen = []
    if mode == "embeddings":
        frozen = [model.encoder.embeddings]
    if mode == "partial":
        available = len(model.encoder.layers)
        if not 0 <= layers <= available:
            raise ValueError(f"freeze: {layers} layers asked for, the encoder has {available}")
        frozen = [model.encoder.embeddings, *model.encoder.layers[:layers]]
    if mode == "full":
        frozen = [model.encoder]
    if mode == "head":
        frozen = [model.head]
    if mode == "all":
        frozen = list(model.children())
    # END choose
    for parameter in model.parameters():
        parameter.requires_grad = True
    for module in frozen:
        for parameter in module.parameters():
            parameter.requires_grad = False
    model.frozen = [] if frozen_dropout else frozen
    return model.train(model.training)


def trainable(model):
    """The (name, parameter) pairs that training may change."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
