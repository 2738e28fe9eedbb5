"""The BERT layer, and the model: embeddings, L layers, a pooler (chapter 3).

Source: Devlin et al. 2019, section 3; Vaswani et al. 2017, section 3.1 (the layer) and 3.3 (its feed-forward part).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from minbert.attention import MultiHeadAttention, mask_bias
from minbert.embeddings import BertEmbeddings

# What `config.json` calls our fields.
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "eps": "layer_norm_eps",
}


@dataclass
class BertConfig:
    """The shape of a BERT. The defaults are those of bert-base-uncased."""

    vocab_size: int = 30522  # V
    hidden_size: int = 768  # D
    layers: int = 12  # L
    heads: int = 12  # H
    intermediate_size: int = 3072  # F
    max_positions: int = 512
    type_vocab_size: int = 2
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    eps: float = 1e-12

    @classmethod
    def from_json(cls, path):
        """Read a Hugging Face `config.json`.

        Raises:
            ValueError: the file is no JSON, a value is missing or out of its range, or it describes something other than
                this BERT.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON ({error}); get it again") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: not a configuration (a JSON object is needed); get it again")
        for key, supported in [("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")]:
            found = values.get(key) or supported  # newer configurations leave out what is the default
            if found != supported:
                raise ValueError(f"{path}: {key} is {found!r}; this package has only {supported!r}")
        needed = ["vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"]
        missing = [key for key in needed if key not in values]
        if missing:
            raise ValueError(f"{path}: no {', '.join(missing)}")
        for key in [*needed, "max_position_embeddings", "type_vocab_size"]:
            if key in values and (type(values[key]) is not int or values[key] < 1):
                raise ValueError(f"{path}: {key} is {values[key]!r}, not a whole number from 1 up; get it again")
        for key in ["hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"]:
            if key in values and (type(values[key]) not in (int, float) or not 0 <= values[key] <= 1):
                raise ValueError(f"{path}: {key} is {values[key]!r}, not a number from 0 to 1; get it again")
        size, heads = values["hidden_size"], values["num_attention_heads"]
        if size % heads:
            raise ValueError(f"{path}: a hidden_size of {size} can't be divided into {heads} num_attention_heads; get it again")
        return cls(**{ours: values[theirs] for ours, theirs in CONFIG_NAMES.items() if theirs in values})

    def to_json(self):
        """This configuration as the text of a Hugging Face `config.json`."""
        values = {CONFIG_NAMES[ours]: value for ours, value in asdict(self).items()}
        fixed = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "pad_token_id": 0}
        return json.dumps(fixed | values, indent=2) + "\n"


class BertLayer(nn.Module):
    """One layer: attention, then a feed-forward network on each token; a residual connection and a
    layer normalisation after each of the two ("post-LN").

        h = LN(x + dropout(attention(x)))
        y = LN(h + dropout(W₂ · GELU(W₁ h)))
    """

    def __init__(self, config):
        super().__init__()
        size = config.hidden_size
        self.attention = MultiHeadAttention(size, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(size, eps=config.eps)
        self.up = nn.Linear(size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, size)
        self.output_norm = nn.LayerNorm(size, eps=config.eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x, bias=None):
        """x (B, T, D) and bias (B, 1, 1, T) or None to (B, T, D)."""
        # BEGIN forward
        h = self.attention_norm(x + self.dropout(self.attention(x, bias)))  # (B, T, D)
        # GELU by the error function, as in Hugging Face's BERT; Google's code later changed to a tanh approximation.
        wide = nn.functional.gelu(self.up(h))  # (B, T, F)
        return self.output_norm(h + self.dropout(self.down(wide)))  # (B, T, D)
        # END forward


class BertModel(nn.Module):
    """BERT's encoder.

    Attributes: `embeddings`, `layers` (L of `BertLayer`), `pooler` (a `Linear`), `hidden_size`, `config`.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.embeddings = BertEmbeddings(
            config.vocab_size, config.hidden_size, config.max_positions,
            config.type_vocab_size, config.hidden_dropout, config.eps,
        )  # fmt: skip
        self.layers = nn.ModuleList([BertLayer(config) for _ in range(config.layers)])
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.apply(initialise)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """Encode a batch.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 for a token and 0 for padding.
            token_type_ids: (B, T) int64, or None for all 0.

        Returns:
            hidden (B, T, D), the last layer's output, and pooled (B, D) = tanh(W · hidden of [CLS] + b).
        """
        # BEGIN forward
        x = self.embeddings(input_ids, token_type_ids)  # (B, T, D)
        bias = mask_bias(attention_mask, x.dtype)  # (B, 1, 1, T)
        for layer in self.layers:
            x = layer(x, bias)  # (B, T, D)
        pooled = torch.tanh(self.pooler(x[:, 0]))  # (B, D): [CLS] is the first token
        return x, pooled
        # END forward


def initialise(module):
    """BERT's first values, as Hugging Face draws them: normal with standard deviation .02, biases 0, [PAD]'s vector 0.

    Source: Devlin et al. 2019, released code, which also draws anew what falls beyond two standard deviations.
    """
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight.data[module.padding_idx])
