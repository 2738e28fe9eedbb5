"""Tables and curves from the recorded runs, beside the published numbers.

`minbert report` prints them; a chapter shows them with `report.show([...])` and `report.curves([...])`.
What was not run is shown as "not run": a gap stays a gap.
"""

from __future__ import annotations

import html
import io
import statistics
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from minbert import published
from minbert.run import records
from minbert.metrics import averages
from minbert.run.recipes import RECIPES, TABLE1, RecipeError, find

NOT_RUN = "not run"

SENTENCE_COLUMNS = ["experiment", "setting", "dev accuracy", "dev macro-F1", "train accuracy", "parameters trained",
                    "published dev accuracy"]
MASKED_COLUMNS = ["experiment", "setting", "dev loss", "dev accuracy", "loss by frequency alone", "accuracy by frequency alone",
                  "published"]
QUORA_COLUMNS = ["experiment", "setting", "dev accuracy, untrained", "dev accuracy", "dev F1", "parameters trained",
                 "published dev accuracy"]
STS_COLUMNS = ["experiment", "setting", "dev r, untrained", "dev r", "dev squared error", "parameters trained",
               "published dev r"]
MANY_COLUMNS = ["experiment", "setting", "average, untrained", "average", "SST accuracy", "Quora accuracy", "STS r", "steps",
                "parameters trained", "published average"]
SQUAD_COLUMNS = ["experiment", "setting", "answering nothing", "exact match", "F1", "F1 at the best threshold",
                 "parameters trained", "published F1"]
TWO_COLUMNS = ["experiment", "setting", "accuracy of the sign, untrained", "accuracy of the sign", "r of the score, untrained",
               "r of the score", "published"]


@dataclass
class ResultTable:
    """A table as plain data: every cell is a string."""

    title: str
    columns: list
    rows: list
    notes: list = field(default_factory=list)


def tables(recipes=None, root=None) -> list[ResultTable]:
    """The tables of some recipes (None: all), one a kind of task.

    Raises RecipeError for an unknown recipe; RecordError when a record is not what the runner wrote.
    """
    names = [find(name).name for name in (RECIPES if recipes is None else recipes)]
    every = records.rows(names, root)
    result = []
    for kind, (title, columns, cells) in KINDS.items():
        chosen = [name for name in names if _kind(name) == kind]
        if chosen:
            result.append(_table(title, columns, kind, cells, chosen, every))
    return result


def _kind(name: str) -> str:
    """Which table a recipe belongs to, see KINDS."""
    task = RECIPES[name].settings.get("task")
    if "+" in task:
        return "two" if task == "sign+score" else "many"
    return task if task in KINDS else "sentence"


def _table(title, columns, kind, cells, names, every) -> ResultTable:
    table = ResultTable(title, columns, [])
    majority = {}
    for name in names:
        rows = [row for row in every if row.recipe == name]
        said = published_cell(name, "average" if kind == "many" else None)   # not the F1 of a fourth task
        if not rows:
            table.rows.append([name, *[NOT_RUN] * (len(columns) - 2), said])
        for row in rows:
            label = f"{name} (stale)" if row.stale else name
            table.rows.append([label, f"{row.size} · {row.model} · {row.data} · {row.precision}", *cells(row),
                               said])
            for difference in row.stale:
                table.notes.append(f"{name}, {row.size}, is stale: it was run with other settings than today's recipe, "
                                   f"then → now: {difference}.")
            majority.update({row.data: share for share in row.values("data", "dev_majority")})
        if RECIPES[name].differs and published_rows(name):
            table.notes.append(f"{name}: {RECIPES[name].differs}.")
    for data, share in majority.items():
        table.notes.append(f"Always answering the most frequent class has dev accuracy {share:.3f} on {data}.")
    if any(NOT_RUN in row for row in table.rows):
        table.notes.append("Not run: there is no record of it here. 'minbert run' and the experiment's name makes one.")
    if kind in ("quora", "sts", "many"):
        table.notes.append("Untrained: the scores before the first step, when the heads are as they were made.")
    settings = {row[1] for row in table.rows if row[1] != NOT_RUN}
    if kind == "many" and len(settings) < 2:           # the widest table: one setting for all rows needs no column
        table.columns = [columns[0], *columns[2:]]
        table.rows = [[row[0], *row[2:]] for row in table.rows]
        table.notes.extend(f"Setting of every run: {setting}." for setting in settings)
    if kind == "many":
        # The column is the reports' average of three; the best epoch is that of the mean over every task of the run.
        four = any("squad" in RECIPES[name].settings["task"].split("+") for name in names)
        chooses = "where SQuAD is a fourth task, the average of all four chooses the best epoch, elsewhere this one does" \
            if four else "it chooses the best epoch"
        table.notes.append(f"The average is that of accuracy, accuracy and Pearson's r, which report S0 uses; {chooses}. "
                           "n is the number of seeds; ± is the standard deviation over them, from three up.")
    if kind in ("quora", "sts"):
        table.notes.append("Dev scores are those of the best epoch, chosen by the dev score. n is the number of seeds; ± is "
                           "the standard deviation over them, from three seeds up.")
    if kind == "sentence":
        table.notes.append("Dev scores are those of the best epoch, chosen by dev accuracy; train accuracy is that epoch's, "
                           "taken along the way with dropout on. n is the number of seeds; ± is the standard deviation "
                           "over them, from three seeds up.")
    return table


def _sentence_cells(row) -> list[str]:
    trained = sorted(set(row.values("parameters", "trained")))
    return [records.mean_and_spread(row.values("best", "dev", "accuracy")),
            records.mean_and_spread(row.values("best", "dev", "macro_f1")),
            records.mean_and_spread(row.values("best", "train", "accuracy")),
            " or ".join(f"{count:,}" for count in trained)]


def _masked_cells(row) -> list[str]:
    return [records.mean_and_spread(row.values("best", "dev", "loss")),
            records.mean_and_spread(row.values("best", "dev", "accuracy")),
            records.mean_and_spread(row.values("data", "unigram_baseline", "loss")),
            records.mean_and_spread(row.values("data", "unigram_baseline", "accuracy"))]


def _quora_cells(row) -> list[str]:
    return [records.mean_and_spread(row.values("untrained", "dev", "accuracy")),
            records.mean_and_spread(row.values("best", "dev", "accuracy")),
            records.mean_and_spread(row.values("best", "dev", "f1")), _trained(row)]


def _sts_cells(row) -> list[str]:
    return [records.mean_and_spread(row.values("untrained", "dev", "pearson")),
            records.mean_and_spread(row.values("best", "dev", "pearson")),
            records.mean_and_spread(row.values("best", "dev", "mse")), _trained(row)]


def _many_cells(row) -> list[str]:
    each = [records.mean_and_spread(row.values("best", "dev", "tasks", *keys)) for keys in SCORES.values()]
    steps = sorted(set(row.values("time", "steps")))
    return [records.mean_and_spread(row.values("untrained", "dev", "average_plain")),
            records.mean_and_spread(row.values("best", "dev", "average_plain")), *each,
            " or ".join(f"{count:,}" for count in steps), _trained(row)]


def _two_cells(row) -> list[str]:
    return [records.mean_and_spread(row.values(when, "dev", "tasks", *keys))
            for keys in (("sign", "accuracy"), ("score", "pearson")) for when in ("untrained", "best")]


def _trained(row) -> str:
    return " or ".join(f"{count:,}" for count in sorted(set(row.values("parameters", "trained"))))


# Where the score of each task is in a record, with the column of the reports' tables.
SCORES = {"sst": ("sst", "accuracy"), "qqp": ("quora", "accuracy"), "sts_r": ("sts", "pearson")}

def _squad_cells(row) -> list[str]:
    return [records.mean_and_spread(row.values(*keys)) for keys in (
        ("data", "dev_nothing"), ("best", "dev", "em"), ("best", "dev", "f1"), ("best", "dev", "best_f1"))] + [_trained(row)]


# A table for each kind of task: its title, its columns, and what fills a row between the setting and the published number.
KINDS = {
    "sentence": ("Sentence classification", SENTENCE_COLUMNS, _sentence_cells),
    "mlm": ("Guessing hidden word pieces", MASKED_COLUMNS, _masked_cells),
    "quora": ("Paraphrase", QUORA_COLUMNS, _quora_cells),
    "sts": ("Similarity", STS_COLUMNS, _sts_cells),
    "squad": ("Questions on a passage", SQUAD_COLUMNS, _squad_cells),
    "two": ("Sign and score of a sentence", TWO_COLUMNS, _two_cells),
    "many": ("Three tasks, one model", MANY_COLUMNS, _many_cells),
}


# ---- report S0's Table 1 -----------------------------------------------------------------------------------------

def table1(root=None, size="small") -> ResultTable:
    """Report S0's Table 1 from our records, each of our cells above the report's.

    A row that takes several recipes, one a task, has an average only if all of them were run; it is the average of the
    means.  Raises RecipeError when a recipe was recorded with several settings at that size.
    """
    columns = ["row", "SST accuracy", "Quora accuracy", "STS r", "average", "average with (r + 1) / 2"]
    table = ResultTable("Three tasks, every way of report S0", columns, [])
    for key, names in TABLE1.items():
        line = published.row("S0", "dev", key)
        rows = [row for row in (recorded(name, root, size=size) for name in names) if row]
        lists = [_scores_of(rows, column) for column in SCORES]
        cells = [records.mean_and_spread(values) for values in lists]
        both = averages(*(sum(values) / len(values) for values in lists)) if all(lists) else ()
        cells += [f"{value:.3f}" for value in both] or [NOT_RUN, NOT_RUN]
        table.rows.append([line["label"], *cells])
        table.rows.append(["· in the report", *(line[column] for column in (*SCORES, "average")), ""])
        table.notes += [f"{row.recipe} is stale: it was run with other settings than today's recipe, then → now: {difference}."
                        for row in rows for difference in row.stale]
    ours = "Ours: MiniLM, 3 epochs, 6,000 question pairs. " if size == "small" else ""
    table.notes.append(f"{ours}The report: BERT-base, 10 epochs, all question pairs. "
                       "Compare rows with rows of the same model, not across.")
    table.notes.append("n is the number of seeds; ± is the standard deviation over them, from three up. "
                       "An average is that of the cells beside it.")
    return table


def _scores_of(rows, column) -> list[float]:
    """The scores of one task in the records of a table's row: of a run of its own, or of one with several tasks."""
    task, metric = SCORES[column]
    found = []
    for row in rows:
        own = RECIPES[row.recipe].settings["task"]
        if own == task:
            found += row.values("best", "dev", metric)
        elif task in own.split("+"):
            found += row.values("best", "dev", "tasks", task, metric)
    return found


def published_rows(name: str, only: str | None = None) -> list[tuple[str, str, str]]:
    """(number as printed, report, row's label) of the published rows that a recipe answers to; with `only` of one column.

    Our tables average r itself. Where a report averages (r + 1) / 2, the label says so.
    """
    found = []
    for report, table, row, column in find(name).published:
        line = published.row(report, table, row)
        form = published.load()["reports"][report]["tables"][table].get("average")
        label = "with (r + 1) / 2: " if column == "average" and form == "leaderboard" else ""
        if line.get(column) is not None and only in (None, column):
            found.append((line[column], report, label + line["label"]))
    return found


def published_cell(name: str, only: str | None = None) -> str:
    """The published numbers of a recipe in one cell; with `only` those of one column."""
    return "; ".join(f"{value} ({report}, {label})" for value, report, label in published_rows(name, only)) \
        or "no published number"


# ---- single numbers, for prose and for checks --------------------------------------------------------------------

def recorded(name: str, root=None, **choice):
    """The one recorded row of a recipe, or None if it was not run.

    `choice` narrows it down: size, model, data, precision.  Raises RecipeError when several rows fit.
    """
    find(name)
    rows = [r for r in records.rows([name], root) if all(getattr(r, key) == value for key, value in choice.items())]
    if len(rows) > 1:
        settings = "; ".join(f"{r.size} · {r.model} · {r.data} · {r.precision}" for r in rows)
        raise RecipeError(f"{name}: recorded with {len(rows)} settings ({settings}); choose by size, model, data or precision")
    return rows[0] if rows else None


def values(name: str, *keys, root=None, **choice) -> list[float]:
    """One number a seed, empty if not run: `values("sst-full", "best", "dev", "accuracy")`."""
    found = recorded(name, root, **choice)
    return found.values(*keys) if found else []


def cell(name: str, *keys, root=None, digits=3, **choice) -> str:
    """A table cell for prose: "0.508 ± 0.004 (n=3)", or "not run".  Without keys: the dev accuracy."""
    return records.mean_and_spread(values(name, *(keys or ("best", "dev", "accuracy")), root=root, **choice), digits)


@dataclass
class Verdict:
    """What may be said of the difference between two lists of scores."""

    gap: float | None              # the difference of their means; None: one of them is empty
    spread: float | None           # the larger of the two standard deviations over seeds; None: fewer than three seeds
    clear: bool                    # True: `gap` is more than twice `spread`, in either direction


def judge(one, two) -> Verdict:
    """Do the scores `one` differ from `two` by more than the seeds do?

    The book's one rule: both sides have three seeds or more, and the means differ by more than twice the larger of the two
    standard deviations.  It is a rule of thumb and no significance test.

    Args:
        one: a list with one score a seed.
        two: another such list, or a number that has no seeds, such as the share of the majority class.
    """
    sides = [one, [two] * 3 if isinstance(two, (int, float)) else two]
    if not all(len(side) for side in sides):
        return Verdict(None, None, False)
    gap = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    if min(map(len, sides)) < 3:
        return Verdict(gap, None, False)
    spread = max(map(statistics.stdev, sides))
    return Verdict(gap, spread, abs(gap) > 2 * spread)


def compared(one: str, other: str, *keys, root=None, **choice) -> str:
    """Recipe `one` against recipe `other` by one score, in words that claim no more than the records allow.

    The rule is that of `judge`; keys and `choice` as in `values`.
    """
    found = {name: values(name, *keys, root=root, **choice) for name in (one, other)}
    missing = [name for name, scores in found.items() if not scores]
    if missing:
        return f"not run yet: {' and '.join(missing)}"
    verdict = judge(*found.values())
    if verdict.spread is None:
        return f"not to be judged from n = {' against '.join(str(len(scores)) for scores in found.values())}: three seeds are needed"
    if not verdict.clear:
        return f"no difference shown: {verdict.gap:+.3f}, spread over seeds {verdict.spread:.3f}"
    return f"{verdict.gap:+.3f}, more than twice the spread over seeds ({verdict.spread:.3f})"


# ---- as text -----------------------------------------------------------------------------------------------------

def table_text(recipes=None, root=None, format="text") -> str:
    """All tables as one string; format "text", "markdown" or "html"."""
    return "\n\n".join(formatted(table, format) for table in tables(recipes, root))


def formatted(table: ResultTable, format="text") -> str:
    """A table as a string; format "text", "markdown" or "html"."""
    return {"text": _text, "markdown": _markdown, "html": _html}[format](table)


def table_markdown(recipes=None, root=None) -> str:
    """All tables as Markdown."""
    return table_text(recipes, root, "markdown")


def _text(table: ResultTable) -> str:
    """Blocks of "column: cell", as the tables are too wide for a terminal: an experiment a block."""
    width = max(len(column) for column in table.columns)
    lines = [table.title, "=" * len(table.title)]
    for cells in table.rows:
        lines += ["", cells[0]]
        lines += [f"  {column:<{width}}  {text}" for column, text in zip(table.columns[1:], cells[1:])]
    return "\n".join([*lines, "", *table.notes])


def _markdown(table: ResultTable) -> str:
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |" for cells in (table.columns, *table.rows)]
    lines.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)])


def _html(table: ResultTable) -> str:
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in table.columns)
    body = "\n".join("<tr>" + f'<th scope="row">{html.escape(cells[0])}</th>' +
                     "".join(f"<td>{html.escape(text)}</td>" for text in cells[1:]) + "</tr>" for cells in table.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    return (f'<table class="table">\n<caption>{html.escape(table.title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody>\n</table>\n<ul>{notes}</ul>")


def show(recipes=None, root=None) -> None:
    """Display the tables in a notebook: Markdown for the page, plain text where there is none."""
    for table in tables(recipes, root):
        show_table(table)


def show_table(table: ResultTable) -> None:
    """Display one table in a notebook."""
    from IPython.display import display

    display({"text/markdown": _markdown(table), "text/plain": _text(table)}, raw=True)


# ---- curves ------------------------------------------------------------------------------------------------------

def curves(recipes=None, root=None):
    """A matplotlib figure: training loss by step on the left, score by epoch (dev solid, train dotted) on the right.

    Each experiment has a colour and a marker of its own.  A line is the mean over its seeds; the band reaches from the
    lowest to the highest seed.  Where no run has a second epoch there is no line to draw on the right: each experiment
    has a row there, with a marker a seed (dev filled, train hollow), and the rows stand for a legend.  What was not run is
    not drawn, and where nothing was run there are words and no axes.  Each kind of task has a row of its own.  End the cell
    with `plt.show()`.
    """
    import matplotlib.pyplot as plt

    kinds = _kinds(recipes, root)
    if not kinds:
        figure = plt.figure(figsize=(9, 0.5))
        named = ", ".join(recipes or ()) or "these experiments"
        figure.text(0.5, 0.5, textwrap.fill(f"{named}: {NOT_RUN}", 110), ha="center", va="center")
        return figure
    figure = plt.figure(figsize=(9, 3.6 * len(kinds)), layout="constrained")
    _draw_kinds(kinds, figure)
    return figure


def _kinds(recipes, root) -> list[list]:
    """The recorded rows by kind of task: their losses and scores are of other sizes."""
    rows = records.rows(None if recipes is None else [find(name).name for name in recipes], root)
    groups = [[row for row in rows if _kind(row.recipe) == kind] for kind in KINDS]
    return [group for group in groups if group]


# What the curves of a kind of task show by epoch: the axis' label, and the key of the score.
SHOWN = {"sts": ("Pearson's r", "pearson"), "many": ("average", "average"), "two": ("average", "average"),
         "squad": ("F1", "f1")}


def _draw_kinds(kinds, figure) -> None:
    axes = figure.subplots(len(kinds), 2, squeeze=False)
    for group, (left, right) in zip(kinds, axes):
        _draw(group, left, right)


def _draw(rows, left, right) -> None:
    import numpy as np

    from minbert.show import COLOURS

    markers = "osD^vPX"                              # one more than there are colours: the pairs repeat late
    crowded = len(rows) > len(COLOURS)
    label, key = SHOWN.get(_kind(rows[0].recipe), ("accuracy", "accuracy"))
    one_epoch = all(len(record["epochs"]) == 1 for group in rows for record in group.records)
    marked = crowded or one_epoch
    names = []                                       # in the order of the rows
    for number, group in enumerate(rows):
        colour, marker = COLOURS[number % len(COLOURS)], markers[number % len(markers)]
        name = group.recipe if len({r.size + r.model + r.data + r.precision for r in rows if r.recipe == group.recipe}) == 1 \
            else f"{group.recipe} ({group.size}, {group.model}, {group.data}, {group.precision})"
        names.append(name)

        losses = [record["curve"]["loss"] for record in group.records]
        losses = np.array([line[:min(map(len, losses))] for line in losses])            # (seeds, points)
        steps = (np.arange(losses.shape[1]) + 1) * group.records[0]["curve"]["every"]
        every = max(2, len(steps) // 6)              # neighbours' markers begin at other steps: equal lines show both
        left.plot(steps, losses.mean(axis=0), color=colour, label=name, linewidth=1.2,
                  **({"marker": marker, "markersize": 4, "markevery": (number % every, every)} if marked else {}))
        left.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, linewidth=0)

        if one_epoch:
            for part, fill, size in (("train", "none", 6), ("dev", colour, 5)):
                scores = [record["epochs"][0][part][key] for record in group.records if key in record["epochs"][0][part]]
                right.plot(scores, [number] * len(scores), marker, color=colour, markerfacecolor=fill, markersize=size,
                           clip_on=False)
            continue
        for part, style in (("dev", "-"), ("train", ":")):
            scores = [[epoch[part][key] for epoch in record["epochs"] if key in epoch[part]] for record in group.records]
            if not scores[0]:                        # a regression has no share of right answers in training
                continue
            scores = np.array([line[:min(map(len, scores))] for line in scores])        # (seeds, epochs)
            epochs = np.arange(scores.shape[1]) + 1
            right.plot(epochs, scores.mean(axis=0), style, color=colour, marker=marker, markersize=4)
            right.fill_between(epochs, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.15, linewidth=0)
            right.set_xticks(range(1, max(len(epochs), int(right.get_xlim()[1])) + 1))
    left.set(xlabel="step", ylabel="training loss")
    if one_epoch:
        right.set(xlabel=f"{label} after the only epoch", title="dev filled, train hollow", ylim=(len(rows) - 0.5, -0.5))
        right.set_yticks(range(len(rows)), names, fontsize=8)
        right.grid(True, axis="both")
    else:
        right.set(xlabel="epoch", ylabel=label, title="dev solid, train dotted")
    if one_epoch:
        left.set_title("colours and markers as on the right")
    else:
        left.legend(fontsize=7 if crowded else 9)


def task_curves(recipes, root=None):
    """A matplotlib figure: for each recipe of several tasks a panel with the dev score of each task by epoch.

    Epoch 0 is the untrained model.  A line is the mean over the seeds, the band reaches from the lowest to the highest.
    What was not run is said in its panel.  End the cell with `plt.show()`.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    from minbert.show import COLOURS

    found = {row.recipe: row for row in records.rows([find(name).name for name in recipes], root) if row.size != "full"}
    figure, axes = plt.subplots(1, len(recipes), figsize=(3.2 * len(recipes), 3.2), sharey=True, squeeze=False,
                                layout="constrained")
    labels = {"sst": "SST, accuracy", "qqp": "Quora, accuracy", "sts_r": "STS, r"}
    for name, ax in zip(recipes, axes[0]):
        ax.set(title=name if name in found else f"{name}: {NOT_RUN}", xlabel="epoch")
        if name not in found:
            ax.set_xticks([])
        for number, (column, keys) in enumerate(SCORES.items()):
            runs = []
            for record in found[name].records if name in found else []:
                devs = [record["untrained"]["dev"], *(epoch["dev"] for epoch in record["epochs"])]
                runs.append([dev["tasks"][keys[0]][keys[1]] for dev in devs])
            if runs:
                runs = np.array(runs)                                                        # (seeds, epochs + 1)
                epochs = np.arange(runs.shape[1])
                ax.plot(epochs, runs.mean(axis=0), color=COLOURS[number], marker="os^"[number], markersize=4,
                        label=labels[column])
                ax.fill_between(epochs, runs.min(axis=0), runs.max(axis=0), color=COLOURS[number], alpha=0.2, linewidth=0)
                ax.set_xticks(epochs)
    axes[0][0].set_ylabel("dev score")
    drawn = [ax for ax in axes[0] if ax.get_lines()]
    if drawn:
        drawn[0].legend(fontsize=8)
    return figure


def cosine_curves(recipes, root=None, window=5, task=None):
    """A matplotlib figure: for each recipe of several tasks a panel with the cosines between its tasks' gradients by step.

    All pairs of tasks; with `task` those that it is one of.

    A thin line is a seed, the thick one the mean over the seeds, both smoothed by the mean over `window` neighbouring
    measurements: each is taken on one batch a task, and most of it is noise.  What was not run, or was run without
    `cosine_every`, is said in its panel.  End the cell with `plt.show()`.
    """
    import matplotlib.pyplot as plt
    import numpy as np

    from minbert.show import COLOURS

    found = {row.recipe: row for row in records.rows([find(name).name for name in recipes], root) if row.size != "full"}
    labels = {"sst": "SST", "quora": "Quora", "sts": "STS", "squad": "SQuAD"}
    figure, axes = plt.subplots(1, len(recipes), figsize=(4.5 * len(recipes), 3.2), sharey=True, squeeze=False,
                                layout="constrained")
    for name, ax in zip(recipes, axes[0]):
        seeds = [record["gradient_cosines"] for record in found[name].records if "gradient_cosines" in record] \
            if name in found else []
        ax.set(title=name if seeds else f"{name}: {NOT_RUN}", xlabel="step")
        if not seeds:
            ax.set_xticks([])
        ax.axhline(0, color="grey", linewidth=0.8)
        tasks = seeds[0]["tasks"] if seeds else []
        pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks)) if task in (None, tasks[i], tasks[j])]
        for number, (i, j) in enumerate(pairs):
            length = min(len(seed["at"]) for seed in seeds)
            steps = [step for step, _ in seeds[0]["at"][:length]]
            # None: a gradient of 0 has no direction. It is left out of the means.
            lines = np.array([[matrix[i][j] for _, matrix in seed["at"][:length]] for seed in seeds], dtype=float)
            known, width = ~np.isnan(lines), np.ones(min(window, length))
            sums = [[np.convolve(row, width, "same") for row in rows] for rows in (np.where(known, lines, 0), known)]
            with np.errstate(invalid="ignore"):
                smooth = np.divide(*sums)                                                # (seeds, measurements)
            for line in smooth:
                ax.plot(steps, line, color=COLOURS[number], linewidth=0.8, alpha=0.5)
            ax.plot(steps, smooth.mean(axis=0), ("-", "--", ":", "-.")[number % 4], color=COLOURS[number],
                    linewidth=2, label=f"{labels.get(tasks[i], tasks[i])} and {labels.get(tasks[j], tasks[j])}")
    axes[0][0].set_ylabel("cosine of the gradients")
    drawn = [ax for ax in axes[0] if ax.get_legend_handles_labels()[0]]
    if drawn:
        figure.legend(*drawn[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    return figure


def save_curves(recipes, file, root=None) -> str:
    """Draw `curves` into a file (svg or png; the same records give the same bytes) and return one line that says so.

    Raises RecipeError for another kind of file; CheckpointError when it can't be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from minbert.run.checkpoint import write_whole           # it imports torch, which a table does not need

    file = Path(file)
    if file.suffix not in (".svg", ".png"):
        raise RecipeError(f"{file}: curves are written as .svg or .png")
    kinds = _kinds(recipes, root)
    if not kinds:
        return f"no curves drawn: none of these experiments has a record ({file} was not written)"
    with matplotlib.rc_context({"svg.hashsalt": "minbert"}):
        figure = Figure(figsize=(9, 3.6 * len(kinds)), layout="constrained")
        _draw_kinds(kinds, figure)
        content = io.BytesIO()
        figure.savefig(content, format=file.suffix[1:], dpi=144,
                       metadata={"Date": None} if file.suffix == ".svg" else {"Software": None})
    write_whole(file, content.getvalue(), "Make room, or name another file")
    return f"curves drawn into {file}"
