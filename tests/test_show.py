"""The notebooks' helpers: what is shown is what is there."""

import contextlib
import io

import pytest
import torch

pytest.importorskip("IPython")

from minbert import attention, show  # noqa: E402


@pytest.fixture
def shown(monkeypatch):
    """What a cell displays: (data, metadata) each."""
    import IPython.display

    seen = []
    monkeypatch.setattr(IPython.display, "display", lambda data, metadata=None, raw=False: seen.append((data, metadata)))
    return seen


def test_a_source_is_the_files_text_without_the_marks(shown):
    show.source(attention.MultiHeadAttention.forward)
    [(data, _)] = shown
    assert data["text/plain"].startswith("# minbert/attention.py\ndef forward(self, x, bias=None):\n")
    assert "BEGIN" not in data["text/plain"] and data["text/markdown"].count("```") == 2


@pytest.mark.parametrize("value, fmt, text", [
    (0.51, ".3f", "0.510"), (30522, ",", "30,522"), (torch.tensor(2.5), ".1f", "2.5"), (".510", ".3f", ".510"),
])
def test_a_number_keeps_its_digits_and_its_name(shown, value, fmt, text):
    show.number("accuracy", value, fmt)
    [(data, metadata)] = shown
    # The page evaluates what is stored: only a quoted text comes back as it was.
    assert data == {"application/papermill.record/text/plain": repr(text), "text/plain": f"accuracy = {text}"}
    assert metadata["scrapbook"]["name"] == "accuracy"


def test_a_table_keeps_its_gaps_and_its_columns(shown):
    show.table([["a|b", None], ["c", "0.52"]], ["head", "|x|"])
    [(data, _)] = shown
    assert data["text/markdown"].split("\n") == ["| head | \\|x\\| |", "|---|---|", "| a\\|b | – |", "| c | 0.52 |"]
    with pytest.raises(ValueError, match="a row has 1 cells, the table 2 columns"):
        show.table([["a"]], ["x", "y"])
    with pytest.raises(ValueError, match="every column needs a heading"):
        show.table([["a", "b"]], ["x", " "])


def test_a_shape_is_one_line():
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        show.shape("q", torch.zeros(2, 4, 5, 8), "(B, H, T, Dh)")
    assert out.getvalue().split() == ["q", "(2,", "4,", "5,", "8)", "(B,", "H,", "T,", "Dh)"] and out.getvalue().count("\n") == 1


def test_a_heat_map_draws_every_entry_and_refuses_what_is_no_matrix():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    image = show.heat(ax, torch.tensor([[0.0, 1.0, 0.5]], requires_grad=True), ["row"], ["a", "b", "c"], values=".1f")
    assert image.get_array().tolist() == [[0.0, 1.0, 0.5]]
    assert [text.get_text() for text in ax.texts] == ["0.0", "1.0", "0.5"]
    assert [text.get_color() for text in ax.texts[:2]] == ["white", "black"]        # each legible on its own cell
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="a heat map needs a matrix"):
        show.heat(ax, torch.zeros(3))
    with pytest.raises(ValueError, match="'svg' or 'png', not 'pdf'"):
        show.style("pdf")
