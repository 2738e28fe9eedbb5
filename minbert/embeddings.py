"""Numbers to vectors: BERT's embeddings, and the simplest model that uses them (chapter 1).

Source: Devlin et al. 2019, section 3 and figure 2 (the sum of three embeddings); Ba et al. 2016 (layer normalisation).
"""

import torch
from torch import nn


class BertEmbeddings(nn.Module):
    """Word + position + token type, then layer normalisation, then dropout.

    Args:
        vocab_size: V, the number of word pieces.
        hidden_size: D, the length of each vector.
        max_positions: the longest sequence that has position vectors.
        type_vocab_size: the number of token types (sentence A is 0, sentence B is 1).
        dropout: the share of values set to 0 in training.
        eps: added to the variance in the layer normalisation; BERT uses 1e-12.
    """

    def __init__(self, vocab_size, hidden_size, max_positions=512, type_vocab_size=2, dropout=0.1, eps=1e-12):
        super().__init__()
        self.word = nn.Embedding(vocab_size, hidden_size, padding_idx=0)
        self.position = nn.Embedding(max_positions, hidden_size)
        self.token_type = nn.Embedding(type_vocab_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids, token_type_ids=None):
        """Look up and add the three vectors of every token.

        Args:
            input_ids: (B, T) int64.
            token_type_ids: (B, T) int64, or None for all 0.

        Returns:
            (B, T, D).

        Raises:
            ValueError: T is larger than the number of positions.
        """
        length = input_ids.shape[1]
        if length > self.position.num_embeddings:
            raise ValueError(
                f"{length} tokens, but there are only {self.position.num_embeddings} positions: "
                "cut the text with encode(..., max_length=...)"
            )
        # BEGIN sum
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)  # (B, T)
        positions = torch.arange(length, device=input_ids.device)  # (T,): the same for every row of the batch
        total = self.word(input_ids) + self.position(positions) + self.token_type(token_type_ids)  # (B, T, D)
        return self.dropout(self.norm(total))  # (B, T, D)
        # END sum


def mean_pool(hidden, attention_mask):
    """The average of the vectors of the real tokens; padding does not count.

    Args:
        hidden: (B, T, D).
        attention_mask: (B, T), 1 for a token and 0 for padding.

    Returns:
        (B, D). A row with no token at all gives zeros, not NaN.

    Source: Reimers and Gurevych 2019, section 3 (the MEAN strategy).
    """
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)  # (B, D)


class BagOfEmbeddings(nn.Module):
    """The simplest encoder: each token's vector, averaged. It does not know the order of the words.

    It has the interface of every encoder in this book: `hidden_size`, and a forward pass that returns
    one vector a token and one vector a sentence.
    """

    def __init__(self, vocab_size, hidden_size, dropout=0.1):
        super().__init__()
        self.hidden_size = hidden_size
        self.word = nn.Embedding(vocab_size, hidden_size, padding_idx=0)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """`input_ids` and `attention_mask` (B, T) to hidden (B, T, D) and pooled (B, D)."""
        hidden = self.dropout(self.word(input_ids))  # (B, T, D)
        return hidden, mean_pool(hidden, attention_mask)


def nearest_pieces(table, piece_id, k=10):
    """The pieces whose vectors point most nearly the same way as one piece's vector.

    Args:
        table: (V, D), an embedding table.
        piece_id: the row to compare with.
        k: how many neighbours.

    Returns:
        a list of `(id, cosine)`, the largest cosine first, without the piece itself.
    """
    directions = nn.functional.normalize(table.detach(), dim=-1)  # (V, D), each of length 1
    cosine = directions @ directions[piece_id]  # (V,)
    cosine[piece_id] = -2.0  # below every cosine: a piece is not its own neighbour
    values, ids = cosine.topk(min(k, len(cosine) - 1))
    return list(zip(ids.tolist(), values.tolist()))
