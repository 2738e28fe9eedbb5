"""`minbert ask`: answers from a text; and `minbert evaluate squad`: the official scores of answers.

Nothing here imports PyTorch before it is needed, so that the command line answers at once.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path


class AskError(ValueError):
    """A context, a question or a file of answers that can't be used; the message is one line."""


# ---- options -----------------------------------------------------------------------------------------------------

def add_ask(command, add_checkpoint) -> None:
    """The command `ask`; `command` and `add_checkpoint` are the command line's own."""
    from minbert.run.cli import whole

    sub = command("ask", command_ask, "answer questions from a text, or say that it holds no answer", [
        'minbert ask --context mill.txt "Who built the mill?"', 'minbert ask --context mill.txt "Who?" "When?" --json',
        'minbert ask --context - "Who built the mill?" < mill.txt'])
    sub.add_argument("question", nargs="+", help="one or more questions")
    sub.add_argument("--context", required=True, metavar="FILE", help="the text, UTF-8; - for standard input")
    sub.add_argument("--threshold", type=tau_number, metavar="τ", help="say that there is no answer when its score is more "
                     "than τ above the best answer's (default: the best on the run's dev set)")
    sub.add_argument("--others", type=whole, default=0, metavar="N", help="also show the N next best answers (default: 0)")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")
    add_checkpoint(sub)


def add_evaluate_squad(sub) -> None:
    """What `evaluate` needs for `evaluate squad`."""
    sub.add_argument("what", nargs="?", choices=("squad",), help="squad: score answers to questions by the official rules "
                     "(default: the sentences of the checkpoint's own task)")
    group = sub.add_argument_group("for evaluate squad")
    group.add_argument("--predictions", metavar="FILE", help='a JSON file {"question id": "text"}, "" for no answer; without '
                       "it, the checkpoint answers")
    group.add_argument("--null-odds", metavar="FILE", help='a JSON file {"question id": score of no answer minus score of the '
                       'answer}; then the best threshold is searched')
    group.add_argument("--threshold", type=tau_number, metavar="τ", help="count as no answer what has odds above τ; needs odds")
    group.add_argument("--json", action="store_true", help="the scores as JSON, for scripts")


def tau_number(text: str) -> float:
    """A number that is one."""
    import argparse

    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.5 or -2")
    return value


def wants_squad(options) -> bool:
    """Whether `evaluate` was called for SQuAD.  Raises AskError for its options without it."""
    if options.what == "squad":
        return True
    for option in ("predictions", "null_odds", "threshold"):
        if getattr(options, option) is not None:
            option = option.replace("_", "-")
            raise AskError(f"--{option} is for questions: minbert evaluate squad --{option} …")
    if options.json:
        raise AskError("--json is for questions: minbert evaluate squad --json")
    return False


# ---- ask ---------------------------------------------------------------------------------------------------------

def command_ask(options) -> int:
    """Answer questions from a text."""
    context = read_context(options.context)
    asked = [text.strip() for text in options.question]
    for place, text in enumerate(asked, 1):
        if not text:
            raise AskError(f"question {place} has no text: write it between quotation marks")

    from minbert.squad import Question, place_of

    run = Reader(options)
    questions = [Question(str(place), text, context) for place, text in enumerate(asked)]
    answers = run.answer(questions)
    threshold = run.threshold if options.threshold is None else options.threshold
    for question, answer in zip(questions, answers):
        none = answer.odds > threshold or not answer.text
        line, column = place_of(context, answer.begin)
        if options.json:
            found = {"question": question.question, "answer": "" if none else answer.text, "best": answer.text,
                     "begin": answer.begin, "end": answer.begin + len(answer.text), "line": line, "column": column,
                     "score": finite(answer.score), "none_score": finite(answer.null),
                     "none_probability": round(answer.none_probability, 4), "threshold": threshold}
            if options.others:
                found["others"] = [{"text": text, "begin": begin, "score": score}
                                   for text, begin, score in answer.others[:options.others]]
            print(json.dumps(found, ensure_ascii=False))
            continue
        place = f"line {line}, character {column}, score {answer.score:.2f}, none {answer.none_probability:.2f}"
        print(question.question)
        if none:
            print(f"  no answer   (none {answer.none_probability:.2f}"
                  + (f"; nearest: {one_line_of(answer.text)}, line {line}, character {column})" if answer.text else ")"))
        else:
            print(f"  {one_line_of(answer.text)}   ({place})")
        for text, begin, score in answer.others[:options.others]:
            line, column = place_of(context, begin)
            print(f"    or  {one_line_of(text)}   (line {line}, character {column}, score {score:.2f})")
    return 0


def read_context(path: str) -> str:
    """The text of a file, or of standard input for "-".  Its characters stay as they are, so that places are exact.
    Raises AskError."""
    where = "standard input" if path == "-" else path
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise AskError(f"{where}: the context can't be read ({error.strerror}): check its name and its permissions") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AskError(f"{where}:{line}: the byte 0x{content[error.start]:02x} is not UTF-8: save it as UTF-8") from None
    if not text.strip():
        raise AskError(f"{where}: there is no text in it to find answers in")
    return text


def one_line_of(text: str) -> str:
    """An answer may run over the end of a line."""
    return " ".join(text.split())


def finite(value: float):
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


class Reader:
    """A trained run that answers questions: model, tokenizer, and the threshold that was best on its dev set.

    Args:
        options: checkpoint (a run's directory, or None for the newest), runs, device, precision.
    """

    def __init__(self, options):
        from minbert.run import build, device
        from minbert.run.windows import WindowSettings

        self.directory = options.checkpoint or newest_squad_run(options.runs)
        model, self.tokenizer, self.meta = build.load_span_model(self.directory)
        self.arithmetic = device.choose(options.device, options.precision)
        self.model = model.to(self.arithmetic.device)
        self.settings = WindowSettings(**self.meta["spans"])
        dev = self.meta["metrics"]["dev"]
        self.threshold = dev.get("tasks", {}).get("squad", dev).get("threshold", 0.0)
        config = self.meta["config"]
        print(f"model: {self.directory} ({config['recipe']}, {config['size']}, epoch {self.meta['epoch']})", file=sys.stderr)
        if config["size"] == "smoke":
            print("plumbing only: this model has learned nothing, its answers mean nothing", file=sys.stderr)

    def answer(self, questions):
        """A `minbert.squad.Answer` to each `Question`."""
        from tqdm import tqdm

        from minbert.run.squad_task import span_scores
        from minbert.run.windows import make_windows
        from minbert.squad import decode

        windows = make_windows(self.tokenizer, questions, self.settings)
        with tqdm(total=len(windows), desc="reading", unit=" windows", leave=False, disable=None) as bar:
            starts, ends = span_scores(self.model, windows, self.arithmetic, batch_size=16, progress=bar.update)
        return decode(questions, windows, starts, ends, max_answer=self.settings.answer_length)


def newest_squad_run(runs) -> Path:
    """The run of the recipe squad whose checkpoint is the newest.  Raises AskError."""
    found = [path for path in Path(runs).glob("squad/*/best-*.safetensors") if not path.parent.name.startswith("smoke-")]
    if not found:
        raise AskError(f"no trained model under {Path(runs) / 'squad'}: run 'minbert run squad' first, or name a run's "
                       "directory by --checkpoint")
    return max(found, key=lambda path: path.stat().st_mtime).parent


# ---- evaluate squad ----------------------------------------------------------------------------------------------

def command_evaluate_squad(options) -> int:
    """Score answers by the official rules."""
    from minbert import squad
    from minbert.run.data_pairs import load_squad, read_squad

    data = read_squad(options.data) if options.data.endswith(".json") else load_squad(options.split, options.data)
    questions = data.questions
    if options.null_odds and not options.predictions:
        raise AskError("--null-odds goes with --predictions: name both files")
    if options.predictions:
        name, said = options.predictions, read_answers(options.predictions, questions, str)
        odds = read_answers(options.null_odds, questions, float) if options.null_odds else None
        if odds is None and options.threshold is not None:
            raise AskError("--threshold needs the odds of no answer: give --null-odds FILE")
    else:
        run = Reader(options)
        name, answers = run.directory, run.answer(questions)
        odds, said = squad.null_odds(questions, answers), {q.id: a.text for q, a in zip(questions, answers)}
    threshold = options.threshold if options.threshold is not None else None if options.predictions else 0.0
    given = said if threshold is None else {i: "" if odds[i] > threshold else text for i, text in said.items()}
    scores = squad.squad_scores(questions, given)
    best = {}
    if odds is not None:
        answers = [squad.Answer(said[q.id], 0, 0.0, odds[q.id], []) for q in questions]
        for by in ("exact", "f1"):
            best[f"best_{by}_thresh"], best[f"best_{by}"] = squad.best_threshold(questions, answers, by)
    if options.out:
        from minbert.run.checkpoint import write_whole

        write_whole(options.out, (json.dumps(given, indent=1, ensure_ascii=False) + "\n").encode(),
                    "Make room, or choose another --out")
    if options.json:
        print(json.dumps({**scores, **{key: finite(value) for key, value in best.items()}}, indent=1))
        return 0
    print(f"answers       {name}" + ("" if threshold is None else f", none where its score is more than {threshold:g} above"))
    print(f"questions     {Path(data.path).name}")
    for prefix, label in (("", "all"), ("HasAns_", "answerable"), ("NoAns_", "unanswerable")):
        if prefix + "total" in scores:
            print(f"{label:<12}  {scores[prefix + 'total']:>6,}   EM {scores[prefix + 'exact']:6.2f}   "
                  f"F1 {scores[prefix + 'f1']:6.2f}")
    for by, label in (("exact", "EM"), ("f1", "F1")) if best else ():
        tau = best[f"best_{by}_thresh"]
        where = f"τ = {tau:.2f}" if math.isfinite(tau) else "answering nothing" if tau < 0 else "answering everything"
        print(f"best {label}       {best[f'best_{by}']:6.2f}   at {where} (chosen on these very questions)")
    if options.out:
        print(f"predictions written to {options.out}")
    return 0


def read_answers(path, questions, kind) -> dict:
    """A file {question id: text} (kind str) or {question id: number} (kind float), one for each question.

    Raises AskError: malformed JSON (with the line), an id that is there twice, missing or unknown, a value of another kind.
    """
    def once(pairs):
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise AskError(f"{path}: question {twice} is there twice: keep one of the two")
        return dict(pairs)

    try:
        content = Path(path).read_bytes()
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=once)
    except OSError as error:
        raise AskError(f"{path}: the file can't be read ({error.strerror}): check its name and its permissions") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise AskError(f"{path}:{line}: the byte 0x{content[error.start]:02x} is not UTF-8: save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise AskError(f"{path}:{error.lineno}: malformed JSON ({error.msg}, column {error.colno}): mend it there") from None
    what = "text" if kind is str else "number"
    if not isinstance(found, dict):
        raise AskError(f'{path}: an object {{"question id": {what}}} is needed, and this is a {type(found).__name__}')
    for name, value in found.items():
        right = isinstance(value, str) if kind is str else isinstance(value, (int, float)) and not isinstance(value, bool)
        if not right or kind is float and math.isnan(value):
            raise AskError(f"{path}: question {name}: {value!r} is no {what}")
    ids = {q.id for q in questions}
    missing, unknown = [q.id for q in questions if q.id not in found], [name for name in found if name not in ids]
    for names, problem in ((missing, "nothing for"), (unknown, "unknown questions:")):
        if names:
            listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            total = len(ids) if names is missing else len(found)
            raise AskError(f"{path}: {problem} {listed} ({len(names):,} of {total:,}): does it belong to these questions "
                           "(--data, --split)?")
    return {q.id: found[q.id] for q in questions}
