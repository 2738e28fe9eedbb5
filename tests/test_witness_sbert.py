"""sentence-transformers as the witness: the same vectors, the same losses on pairs, the same gradients.

Its import alone takes seconds, so that `make test-fast` leaves these tests out.
"""

import pytest
import torch

from minbert.bert import BertConfig, BertModel
from minbert.pairs import ApartPairs, CosineScore, VectorHead, nearest_class, pair_loss
from minbert.pretrained import find_weights, hf_name, save_pretrained
from minbert.run.data import load_task
from minbert.run.vectors import load_embedder, embed_sentences
from minbert.tokens import encode, pad, train_wordpiece

pytestmark = pytest.mark.slow

FIRST = ["A boat at sea, far from any harbour and any hope.", "Dull.", "The music is fine.", "Nobody laughs in it."]
SECOND = ["A ship.", "It is dull from the first minute to the last one.", "Fine music.", "The sea."]
LABELS = torch.tensor([3.75, 2.5, 5.0, 0.0])       # a fifth of each is exact in float32, to which theirs rounds


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A directory with a tiny BERT: every parameter random, since fresh biases and scales hide mistakes."""
    torch.manual_seed(0)
    tokenizer = train_wordpiece(load_task("sst", "train", "builtin").texts, vocab_size=300)
    model = BertModel(BertConfig(tokenizer.get_vocab_size(), 16, 2, 2, 32, max_positions=64,
                                 hidden_dropout=0.0, attention_dropout=0.0))  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    directory = tmp_path_factory.mktemp("sbert") / "tiny"
    save_pretrained(model, tokenizer, directory)
    return directory


def theirs(directory):
    """Their model with mean pooling, from a directory, with no network."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(directory), max_seq_length=64, model_kwargs={"local_files_only": True})
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


@pytest.mark.parametrize("weights, normalise", [("tiny", True), ("tiny", False), ("minilm", True)])
def test_the_vectors_are_theirs(weights, normalise, tiny):
    directory = tiny if weights == "tiny" else find_weights("minilm")
    ours, cut = embed_sentences(load_embedder(str(directory)), FIRST + SECOND, "mean", normalise, max_length=64)
    want = theirs(directory).encode(FIRST + SECOND, batch_size=3, normalize_embeddings=normalise)
    assert cut == 0 and ours.shape == want.shape
    assert abs(ours - want).max() <= 1e-6


def pair(tiny, head):
    """Our model and theirs in float64, and the batch of each: ours has both sides in one rectangle."""
    embedder = load_embedder(str(tiny))
    ours = ApartPairs(embedder.encoder, head, "mean", dropout=0.0).double()
    ids = encode(embedder.tokenizer, FIRST + SECOND, 64).ids
    sides = [dict(zip(("input_ids", "attention_mask"), pad(side))) for side in (ids[:4], ids[4:])]
    return ours, theirs(tiny).double(), pad(ids), sides


def same_gradients(ours, sentence_model, head=()):
    """Every parameter of the encoder, by name; the pooler is read by neither. `head`: pairs of parameters."""
    want = dict(sentence_model[0].model.named_parameters())
    compared = 0
    for name, parameter in ours.encoder.named_parameters():
        gradient = want[hf_name(name)].grad
        if name.startswith("pooler."):
            assert parameter.grad is None and gradient is None
            continue
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
        compared += parameter.grad.abs().sum().item() > 0
    assert compared > 30
    for mine, other in head:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_the_cosine_objective_is_their_cosine_similarity_loss(tiny):
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    ours, sentence_model, batch, sides = pair(tiny, CosineScore())
    loss = pair_loss("cosine", ours(*batch), LABELS.double())
    want = CosineSimilarityLoss(sentence_model)(sides, LABELS.double() / 5)        # its labels are cosines
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    loss.backward()
    want.backward()
    same_gradients(ours, sentence_model)


@pytest.mark.parametrize("objective, labels, outputs", [("ce2", torch.tensor([1, 1, 1, 0]), 2), ("classes", LABELS, 6)])
def test_the_vector_head_is_their_softmax_loss(tiny, objective, labels, outputs):
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

    torch.manual_seed(2)
    ours, sentence_model, batch, sides = pair(tiny, VectorHead(16, outputs))
    softmax = SoftmaxLoss(sentence_model, embedding_dimension=16, num_labels=outputs).double()
    with torch.no_grad():
        softmax.classifier.weight.copy_(ours.head.linear.weight)
        softmax.classifier.bias.copy_(ours.head.linear.bias)
    loss = pair_loss(objective, ours(*batch), labels)
    want = softmax(sides, nearest_class(labels) if objective == "classes" else labels)
    assert loss.item() == pytest.approx(want.item(), rel=1e-12)
    loss.backward()
    want.backward()
    linear = ours.head.linear
    same_gradients(ours, sentence_model, [(linear.weight, softmax.classifier.weight), (linear.bias, softmax.classifier.bias)])
