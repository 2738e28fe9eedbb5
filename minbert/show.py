"""Helpers for the notebooks: show a source, name a number, draw in the book's style.

Nothing here is needed to understand BERT. matplotlib and IPython are imported inside the functions, so
that ``import minbert`` never asks for them.
"""

import inspect
import re
import textwrap

# A line such as "# BEGIN scores" or "# END scores": the exercise generator cuts there, a reader need not see it.
MARK = re.compile(r"^\s*# (?:BEGIN|END) [\w-]+\s*$")

# Mid grey has about the same contrast (4.2 : 1) on the book's white and on its near-black page.
INK = "#7b7b7b"
# Colours that stay apart for colour-blind readers and are neither too light for white nor too dark for black.
COLOURS = ["#3a86c8", "#d9782d", "#2a9d78", "#b065b8", "#b3972b", "#7b7b7b"]


def clean_source(obj):
    """Return the source text of ``obj`` (function, class, method, module), unindented, without exercise marks."""
    lines = textwrap.dedent(inspect.getsource(obj)).rstrip().split("\n")
    return "\n".join(line for line in lines if not MARK.match(line))


def source(*objects):
    """Display the source of package objects as highlighted code, the file's name above it.

    What is shown is what runs: the text is read from the imported module. In a chapter, give the cell the
    tag ``hide-output`` so that the source sits folded until the reader has tried the exercise.
    """
    from IPython.display import display

    for obj in objects:
        code = clean_source(obj)
        module = obj.__name__ if inspect.ismodule(obj) else obj.__module__
        where = module.replace(".", "/") + ".py"
        markdown = f"`{where}`\n\n```python\n{code}\n```"
        display({"text/markdown": markdown, "text/plain": f"# {where}\n{code}"}, raw=True)


def number(key, value, fmt=".3f"):
    """Show ``key = value`` and give the number a name that the prose can use.

    After ``show.number("heads", 12, "d")``, a Markdown cell of the same notebook may say
    ``{glue:text}`heads` `` and the page shows 12. A number that a cell computed cannot disagree with its text.

    Parameters: ``key`` unique in the notebook; ``value`` a number, a 0-dimensional tensor or a string;
    ``fmt`` a format specification (ignored for a string). Use 3 decimals at most, 2 after training.
    """
    from IPython.display import display

    if hasattr(value, "item"):
        value = value.item()
    text = value if isinstance(value, str) else format(value, fmt)
    # The two keys are myst-nb's convention for a stored value. Written here by hand, so that a reader who
    # only runs the notebook need not install the tools that build the book.
    prefix = "application/papermill.record/"
    display(
        # Quoted, because myst-nb evaluates what it finds: ".510" would become 0.51, and "30,522" a pair of numbers.
        {prefix + "text/plain": repr(text), "text/plain": f"{key} = {text}"},
        metadata={"scrapbook": {"name": key, "mime_prefix": prefix}},
        raw=True,
    )


def table(rows, columns):
    """Display rows as a table that reads well in the notebook and on the page.

    Parameters: ``rows``, a list of sequences of texts and numbers (format the numbers first: "0.52"; None is shown
    as a dash, a gap stays a gap); ``columns``, their headings, none of them empty. Raises ``ValueError`` for an empty
    heading, and for a row that is longer or shorter than the headings.
    """
    from IPython.display import display

    if not all(str(heading).strip() for heading in columns):
        raise ValueError("every column needs a heading: a screen reader says it with each cell")
    texts = [[str(heading).replace("|", "\\|") for heading in columns]]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row has {len(row)} cells, the table {len(columns)} columns: {row}")
        texts.append(["–" if cell is None else str(cell).replace("|", "\\|") for cell in row])
    markdown = ["| " + " | ".join(line) + " |" for line in texts]
    markdown.insert(1, "|" + "---|" * len(columns))
    widths = [max(len(line[i]) for line in texts) for i in range(len(columns))]
    plain = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in texts]
    display({"text/markdown": "\n".join(markdown), "text/plain": "\n".join(plain)}, raw=True)


def shape(name, tensor, dims=""):
    """Print one line: the name, the shape, and what the dimensions mean, ``q  (2, 4, 5, 8)  (B, H, T, Dh)``."""
    print(f"{name:<16}{str(tuple(tensor.shape)):<20}{dims}".rstrip())


def style(format="svg"):
    """Set matplotlib for the book: grey ink on a transparent page, the same bytes at every run.

    ``format="svg"`` is for fixed arithmetic and for figures from records. Use ``style("png")`` before a figure
    of something that was trained in the notebook, or of thousands of points: tests compare SVG, not PNG.
    Call it once at the top of a notebook that draws; every figure cell ends with ``plt.show()``. Raises ``ValueError`` for
    another format.
    """
    import matplotlib as mpl
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    if format not in ("svg", "png"):
        raise ValueError(f"format is 'svg' or 'png', not {format!r}")
    mpl.rcParams.update({
        "figure.figsize": (6.4, 3.6),
        "figure.dpi": 144 if format == "png" else 72,
        "figure.facecolor": "none",
        "figure.constrained_layout.use": True,
        "savefig.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.titlesize": 12,
        "axes.labelsize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": mpl.cycler(color=COLOURS),
        "grid.color": INK,
        "grid.alpha": 0.3,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "text.color": INK,
        "font.size": 11,
        "font.family": "DejaVu Sans",       # shipped with matplotlib: the same glyphs on every machine
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 2,
        "svg.hashsalt": "minbert",          # identifiers inside the file, otherwise random at every run
    })
    if format == "svg":
        set_matplotlib_formats("svg", metadata={"Date": None})
    else:
        set_matplotlib_formats("png")


def heat(ax, matrix, rows=None, columns=None, title="", values=None, low=None, high=None, cmap="viridis"):
    """Draw a matrix as a heat map on ``ax``, row 0 at the top: an attention matrix, a confusion matrix.

    Parameters: ``matrix`` (R, C), an array or a tensor; ``rows``, ``columns`` labels of lengths R and C;
    ``values`` a format such as ``".2f"`` to write each entry into its cell, None to write nothing;
    ``low``, ``high`` the ends of the colour scale (by default the matrix's own). Returns the image, for
    ``ax.figure.colorbar(image, ax=ax)``. Raises ``ValueError`` for what is no matrix.
    """
    import numpy as np

    matrix = np.asarray(matrix.detach().cpu() if hasattr(matrix, "detach") else matrix, dtype=float)
    if matrix.ndim != 2:
        raise ValueError(f"a heat map needs a matrix (R, C); got shape {matrix.shape}")
    image = ax.imshow(matrix, cmap=cmap, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    if columns is not None:
        ax.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, map(str, columns))) > 3 else 0)
    ax.set_title(title)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    if values:
        for (i, j), value in np.ndenumerate(matrix):
            # White on the dark end of the scale, black on the light end: read the cell's own colour.
            red, green, blue, _ = image.cmap(image.norm(value))
            light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            ax.text(j, i, format(value, values), ha="center", va="center", fontsize=9,
                    color="black" if light else "white")
    return image
