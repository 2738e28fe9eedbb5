"""Reports: n in every cell, gaps as gaps, stale as stale, published numbers as printed, the same bytes every time."""

import re

import pytest

from minbert import published
from minbert.run import records, recipes, report
from minbert.run.recipes import RecipeError
from tests.test_records import made_up


@pytest.fixture
def root(tmp_path):
    for seed in range(3):
        records.write(made_up("sst-full", seed, 0.50 + seed / 100), tmp_path)
    records.write(made_up("sst-frozen", 0, 0.3), tmp_path)
    return tmp_path


def cells(root, name):
    [table] = report.tables([name], root)
    [row] = table.rows
    return dict(zip(table.columns, row)), table.notes


def test_a_row_has_the_spread_of_its_seeds_and_the_published_numbers(root):
    row, notes = cells(root, "sst-full")
    assert row["setting"] == "small · minilm · builtin · fp32"
    assert row["dev accuracy"] == "0.510 ± 0.010 (n=3)" and row["dev macro-F1"] == "0.460 ± 0.010 (n=3)"
    assert row["train accuracy"] == "0.710 ± 0.010 (n=3)" and row["parameters trained"] == "1,925"
    assert row["published dev accuracy"] == ".517 (S0, fine-tuned per task (upper baseline)); .524 (S1, lr 3e-5)"
    assert any("0.250 on builtin" in note for note in notes)
    assert any(recipes.RECIPES["sst-full"].differs in note for note in notes)


def test_one_seed_has_no_spread(root):
    row, _ = cells(root, "sst-frozen")
    assert row["dev accuracy"] == "0.300 (n=1)" and "±" not in row["dev accuracy"]
    assert row["published dev accuracy"].startswith(".311 (S0, frozen encoder")


def test_what_was_not_run_is_shown_as_a_gap(root):
    row, notes = cells(root, "sst-partial")
    assert row["dev accuracy"] == row["setting"] == "not run" and row["published dev accuracy"] == "no published number"
    assert any(note.startswith("Not run") for note in notes)
    assert not re.search(r"\d\.\d{3} ", " ".join(row.values()))


def test_a_stale_record_is_shown_with_the_difference(root):
    old = made_up("sst-frozen", 1, 0.31)
    old["config"]["lr"] = 1e-5
    records.write(old, root)
    row, notes = cells(root, "sst-frozen")
    assert row["experiment"] == "sst-frozen (stale)" and any("lr: 1e-05 → 3e-05" in note for note in notes)


def test_pretraining_has_a_table_of_its_own_with_the_baseline(root):
    records.write(made_up("masked-language-model", 0, 0.2), root)
    first, second = report.tables(["sst-full", "masked-language-model"], root)
    row = dict(zip(second.columns, second.rows[0]))
    assert len(first.rows) == len(second.rows) == 1
    assert row["loss by frequency alone"] == "6.500 (n=1)" and row["accuracy by frequency alone"] == "0.040 (n=1)"


def test_every_recipe_is_in_the_whole_report_and_nothing_is_invented(tmp_path):
    text = report.table_text(root=tmp_path)
    assert all(name in text for name in recipes.RECIPES)
    printed = set(re.findall(r"(?<![\d.])0?\.\d{3}", text))
    reported = {published.row(*place[:3])[place[3]] for recipe in recipes.RECIPES.values() for place in recipe.published}
    assert printed <= reported and {".517", ".311"} <= reported  # no records: only what the reports published


def test_the_three_formats_say_the_same(root):
    [table] = report.tables(["sst-full"], root)
    for form in ("text", "markdown", "html"):
        written = report.table_text(["sst-full"], root, form)
        assert all(cell in written for cell in table.rows[0]) and all(note in written.replace("&#x27;", "'")
                                                                       for note in table.notes)
    markdown = report.table_markdown(["sst-full"], root).splitlines()
    assert {line.count("|") for line in markdown[:3]} == {len(table.columns) + 1}


def test_html_is_escaped_and_its_headers_are_headers(root):
    from minbert.run.report import ResultTable, _html

    page = _html(ResultTable("a < b", ["x", "y"], [["<b>", "&"]], ["<i>"]))
    assert "&lt;b&gt;" in page and "&amp;" in page and "<i>" not in page and "<caption>a &lt; b</caption>" in page
    assert page.count('scope="col"') == 2 and page.count('scope="row"') == 1


def test_single_numbers_for_prose(root):
    assert report.cell("sst-full", root=root) == "0.510 ± 0.010 (n=3)"
    assert report.cell("sst-partial", root=root) == "not run"
    assert report.values("sst-full", "best", "dev", "macro_f1", root=root) == pytest.approx([0.45, 0.46, 0.47])
    records.write(made_up("sst-full", data="hub"), root)
    with pytest.raises(RecipeError, match="recorded with 2 settings"):
        report.cell("sst-full", root=root)
    assert report.cell("sst-full", root=root, data="hub", digits=2) == "0.50 (n=1)"


def test_two_recipes_are_ordered_only_from_three_seeds_and_beyond_the_spread(root):
    """sst-full: .50, .51, .52; its sample standard deviation is .01."""
    def said(other):
        return report.compared("sst-full", other, "best", "dev", "accuracy", root=root)

    assert said("sst-partial") == "not run yet: sst-partial"
    assert said("sst-frozen") == "not to be judged from n = 3 against 1: three seeds are needed"
    for seed in range(3):
        records.write(made_up("sst-lr-1e-5", seed, 0.49 + seed / 100), root)
        records.write(made_up("sst-lr-1e-4", seed, 0.46 + seed / 100), root)
    assert said("sst-lr-1e-5") == "no difference shown: +0.010, spread over seeds 0.010"
    assert said("sst-lr-1e-4") == "+0.040, more than twice the spread over seeds (0.010)"


def many(recipe, seed, at=None):
    """A record of three tasks, with cosines measured at some steps."""
    record = made_up(recipe, seed, 0.5)
    dev = {"tasks": {"sst": {"accuracy": 0.5}, "quora": {"accuracy": 0.8}, "sts": {"pearson": 0.2}},
           "average": 0.5, "average_plain": 0.5, "average_shifted": 0.65}
    record["untrained"], record["best"]["dev"] = {"dev": dev}, dev
    if at:
        record["gradient_cosines"] = {"tasks": ["sst", "quora", "sts"], "at": at}
    return record


def test_a_table_of_several_tasks_names_its_one_setting_below(tmp_path):
    gap, notes = cells(tmp_path, "annealed")
    assert "setting" not in gap and gap["average"] == "not run"
    records.write(many("annealed", 0), tmp_path)
    row, notes = cells(tmp_path, "annealed")
    assert "setting" not in row and row["average"] == "0.500 (n=1)"
    assert "Setting of every run: small · minilm · builtin · fp32." in notes
    assert cells(tmp_path, "annealed-squad")[0]["published average"] == ".741 (S0, the same + SQuAD as a fourth task)"
    other = many("annealed", 1)
    other["config"]["data"] = "elsewhere"
    records.write(other, tmp_path)
    [table] = report.tables(["annealed"], tmp_path)
    assert "setting" in table.columns and len({row[1] for row in table.rows}) == 2
    with pytest.raises(RecipeError, match="2 settings"):
        report.table1(tmp_path)


def test_a_published_number_of_another_kind_than_its_column_says_so():
    """S1 averages (r + 1) / 2 where our column has r."""
    assert report.published_cell("annealed") == ".747 (S0, one model, round robin, annealed sampling)"
    assert report.published_cell("s1-mse") == ".747 (S1, with (r + 1) / 2: + MSE for similarity)"
    assert report.published_cell("squad-alone") == ".722 (S0, SQuAD alone)"


@pytest.mark.parametrize("names, says", [
    (["annealed"], "which report S0 uses; it chooses the best epoch. n is"),
    (["annealed-squad"], "where SQuAD is a fourth task, the average of all four chooses the best epoch"),
    (["annealed", "annealed-squad"], "where SQuAD is a fourth task, the average of all four chooses the best epoch"),
])
def test_the_note_below_several_tasks_says_what_chooses_the_best_epoch(tmp_path, names, says):
    [table] = report.tables(names, tmp_path)
    assert [says in note for note in table.notes].count(True) == 1


def test_table1_says_what_ours_are_only_where_it_is_known(tmp_path):
    assert report.table1(tmp_path).notes[0].startswith("Ours: MiniLM, 3 epochs")
    assert report.table1(tmp_path, size="full").notes[0].startswith("The report: BERT-base")


def test_cosines_by_step_leave_out_what_has_no_direction(tmp_path):
    plt = pytest.importorskip("matplotlib.pyplot")
    matrix = [[1, 0.1, None], [0.1, 1, -0.2], [None, -0.2, 1]]
    later = [[1, 0.3, 0.4], [0.3, 1, -0.4], [0.4, -0.4, 1]]
    records.write(many("annealed", 0, [[50, matrix], [100, later]]), tmp_path)
    figure = report.cosine_curves(["annealed", "round-robin"], tmp_path, window=1)
    drawn, gap = figure.axes
    assert gap.get_title() == "round-robin: not run" and drawn.get_title() == "annealed"
    lines = {line.get_label(): line for line in drawn.get_lines()}
    assert lines["SST and Quora"].get_ydata().tolist() == [0.1, 0.3]
    assert lines["Quora and STS"].get_ydata().tolist() == [-0.2, -0.4]
    first, second = lines["SST and STS"].get_ydata()
    assert first != first and second == 0.4 and lines["SST and STS"].get_xdata().tolist() == [50, 100]
    [drawn] = report.cosine_curves(["annealed"], tmp_path, task="quora").axes
    assert drawn.get_legend_handles_labels()[1] == ["SST and Quora", "Quora and STS"]
    plt.close("all")


def test_unknown_recipes_are_refused(root):
    with pytest.raises(RecipeError, match="did you mean sst-full"):
        report.tables(["sst-ful"], root)


def test_a_changed_record_stops_the_report(root):
    path = root / "sst-frozen" / "small-minilm-builtin-fp32-0.json"
    path.write_text(path.read_text().replace("0.3", "0.9"))
    with pytest.raises(records.RecordError, match="changed since it was written"):
        report.table_text(["sst-full"], root)


def test_show_displays_markdown_with_plain_text_beside(root, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    report.show(["sst-full"], root)
    assert shown[0]["text/markdown"] == report.table_markdown(["sst-full"], root)
    assert shown[0]["text/plain"] == report.table_text(["sst-full"], root)


# ---- curves ------------------------------------------------------------------------------------------------------

def test_curves_are_the_same_bytes_every_time(root, tmp_path):
    pytest.importorskip("matplotlib")
    for name in ("a.svg", "b.svg"):
        assert report.save_curves(["sst-full", "sst-frozen", "sst-partial"], tmp_path / name, root).startswith("curves drawn")
    content = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert content == (tmp_path / "b.svg").read_text(encoding="utf-8") and "<dc:date>" not in content


def test_curves_show_the_means_of_the_recorded_seeds(root):
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = report.curves(["sst-full", "sst-partial"], root)
    left, right = figure.axes
    [loss] = left.get_lines()
    assert list(loss.get_xdata()) == [25, 50, 75] and list(loss.get_ydata()) == [1.5, 1.25, 1.0]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["sst-full"]
    dev, train = right.get_lines()
    assert list(dev.get_ydata()) == pytest.approx([0.49, 0.50, 0.51])
    assert list(train.get_ydata()) == pytest.approx([0.51, 0.61, 0.71])
    plt.close(figure)


def test_runs_of_one_epoch_have_a_row_each_with_a_marker_a_seed(root):
    plt = pytest.importorskip("matplotlib.pyplot")
    for name, seed, accuracy in (("optimizer-adamw", 0, 0.4), ("optimizer-adamw", 1, 0.5), ("optimizer-course", 0, 0.3)):
        record = made_up(name, seed, accuracy)
        record["best"] = record["epochs"][0]
        records.write({**record, "epochs": record["epochs"][:1]}, root)
    figure = report.curves(["optimizer-adamw", "optimizer-course"], root)
    left, right = figure.axes
    assert [text.get_text() for text in right.get_yticklabels()] == ["optimizer-adamw", "optimizer-course"]
    drawn = {line.get_markerfacecolor() != "none": [] for line in right.get_lines()}
    for line in right.get_lines():
        drawn[line.get_markerfacecolor() != "none"] += zip(line.get_xdata(), line.get_ydata())
    rounded = {filled: sorted((round(float(x), 9), y) for x, y in points) for filled, points in drawn.items()}
    assert rounded == {True: [(0.28, 1), (0.38, 0), (0.48, 0)],                            # dev, filled: every seed
                       False: [(0.3, 1), (0.4, 0), (0.5, 0)]}                              # train, hollow
    look = [(line.get_color(), line.get_marker()) for line in left.get_lines()]
    assert look == [(line.get_color(), line.get_marker()) for line in right.get_lines()[::2]] and len(set(look)) == 2
    plt.close(figure)

    figure = report.curves(["optimizer-adamw", "sst-full"], root)                          # one with more: lines, by epoch
    assert figure.axes[1].get_xlabel() == "epoch" and figure.axes[0].get_legend() is not None
    plt.close(figure)


def test_curves_of_nothing_are_a_gap(tmp_path):
    assert "none of these experiments has a record" in report.save_curves(["sst-full"], tmp_path / "c.svg", tmp_path)
    assert not (tmp_path / "c.svg").exists()
    with pytest.raises(RecipeError, match="svg or .png"):
        report.save_curves(["sst-full"], tmp_path / "c.gif", tmp_path)
    plt = pytest.importorskip("matplotlib.pyplot")
    for names, words in ((["sst-full", "squad"], "sst-full, squad: not run"), ([], "these experiments: not run")):
        figure = report.curves(names, tmp_path)
        assert figure.axes == [] and [text.get_text() for text in figure.texts] == [words]
        plt.close(figure)


def test_pretraining_has_axes_of_its_own(root):
    plt = pytest.importorskip("matplotlib.pyplot")
    records.write(made_up("masked-language-model", 0, 0.2), root)
    figure = report.curves(["sst-full", "masked-language-model"], root)
    names = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes[::2]]
    assert names == [["sst-full"], ["masked-language-model"]]
    plt.close(figure)


def test_no_two_experiments_look_alike(root):
    plt = pytest.importorskip("matplotlib.pyplot")
    names = [name for name, recipe in recipes.RECIPES.items() if recipe.chapter in (1, 2, 4, 5)]
    for name in names:
        records.write(made_up(name, 0, 0.2), root)
    figure = report.curves(names, root)
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].get_lines()}
    assert len(looks) == len(figure.axes[0].get_lines()) >= len(names)
    plt.close(figure)


def test_a_difference_is_clear_above_twice_the_larger_spread_by_hand():
    low, high = [0.50, 0.51, 0.52], [0.53, 0.55, 0.57]           # standard deviations 0.01 and 0.02, means 0.04 apart
    found = report.judge(high, low)
    assert found.gap == pytest.approx(0.04) and found.spread == pytest.approx(0.02) and not found.clear
    assert report.judge([score + 0.001 for score in high], low).clear
    assert report.judge(low, [score + 0.001 for score in high]).clear              # downwards as upwards
    assert report.judge(low, 0.48).clear and not report.judge(low, 0.491).clear    # against a number, its own spread alone


@pytest.mark.parametrize("one, two, gap", [([0.1, 0.2], [0.8, 0.9, 0.9], -0.7167), ([], [0.5] * 3, None), ([0.5] * 3, [], None),
                                           ([0.5], 0.4, 0.1)])
def test_without_three_seeds_there_is_no_spread_and_nothing_is_clear(one, two, gap):
    found = report.judge(one, two)
    assert found.gap == (gap if gap is None else pytest.approx(gap, abs=1e-4))
    assert found.spread is None and not found.clear
