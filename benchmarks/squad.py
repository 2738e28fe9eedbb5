"""How long do windows and answers take? Ours beside the way of Hugging Face's question-answering example.

    python -m benchmarks.squad [--data DIRECTORY] [--out FILE.json]

Featurising: questions and passages to windows of word pieces, with the answer's place in each. Theirs gives question and
passage to the fast tokenizer together, lets it cut, and looks for the answer's pieces window by window. Decoding: scores to
the best answer and the score of none. Theirs tries the 20 best starts with the 20 best ends of each window, and
lists the 20 best spans; ours finds as many and cuts their texts out when they are asked for. What is written here of their
way follows their documentation.

Both do the same questions in turn, part by part, in changing order, after a check that they agree. A ratio above 1: ours
is faster. The ratios are of processor time, which other work on the machine disturbs least; wall time stands beside it.
"""

import argparse
import collections
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from minbert.pretrained import find_weights
from minbert.run.data_pairs import load_squad
from minbert.run.recipes import source_name
from minbert.squad import decode, featurise
from minbert.tokens import load_tokenizer

LENGTH, STRIDE, BEST, LONGEST = 384, 128, 20, 30


# ---- their way -----------------------------------------------------------------------------------------------------

def their_windows(tokenizer, questions):
    """Windows as dictionaries of lists: input_ids, token_type_ids, offset_mapping, and the answer's place."""
    encoded = tokenizer(
        [q.question for q in questions], [q.context for q in questions], truncation="only_second", max_length=LENGTH,
        stride=STRIDE, return_overflowing_tokens=True, return_offsets_mapping=True, padding=False,
    )  # fmt: skip
    starts, ends = [], []
    for w, offsets in enumerate(encoded["offset_mapping"]):
        question = questions[encoded["overflow_to_sample_mapping"][w]]
        place = (0, 0)
        if question.answers:
            side = encoded.sequence_ids(w)
            first = side.index(1) if 1 in side else len(side)
            last = len(side) - 1
            while last > 0 and side[last] != 1:
                last -= 1
            text, begin = question.answers[0]
            end = begin + len(text)
            if first <= last and offsets[first][0] <= begin and offsets[last][1] >= end:
                left, right = first, last
                while left <= last and offsets[left][0] <= begin:
                    left += 1
                while right >= first and offsets[right][1] >= end:
                    right -= 1
                place = (left - 1, right + 1)
        starts.append(place[0])
        ends.append(place[1])
    return encoded, starts, ends


def their_features(questions, windows):
    """What their decoding reads: by question, the places of its windows; and of each the characters of its pieces, None
    outside the passage."""
    of_question = collections.defaultdict(list)
    characters = []
    for w, window in enumerate(windows):
        of_question[window.question].append(w)
        characters.append([None] * window.first + [tuple(pair) for pair in window.offsets.tolist()] + [None])
    return of_question, characters


def their_answers(questions, features, start_scores, end_scores):
    """(text, score, null score, the n best with their probabilities) of each question."""
    of_question, characters = features
    found = []
    for number, question in enumerate(questions):
        null, candidates = None, []
        for w in of_question[number]:
            starts, ends, places = start_scores[w], end_scores[w], characters[w]
            here = starts[0] + ends[0]
            if null is None or here < null:
                null = here
            best_starts = np.argsort(starts)[-1 : -BEST - 1 : -1].tolist()
            best_ends = np.argsort(ends)[-1 : -BEST - 1 : -1].tolist()
            for i in best_starts:
                for j in best_ends:
                    if i >= len(places) or j >= len(places) or places[i] is None or places[j] is None:
                        continue
                    if j < i or j - i + 1 > LONGEST:
                        continue
                    candidates.append({"characters": (places[i][0], places[j][1]), "score": starts[i] + ends[j],
                                       "start": starts[i], "end": ends[j]})  # fmt: skip
        candidates = sorted(candidates, key=lambda c: c["score"], reverse=True)[:BEST]
        if null is not None:
            candidates.append({"characters": (0, 0), "score": null, "start": null, "end": 0.0})
        for candidate in candidates:
            begin, end = candidate.pop("characters")
            candidate["text"] = question.context[begin:end]
        chances = np.exp(np.array([c["score"] for c in candidates]) - max(c["score"] for c in candidates))
        for chance, candidate in zip(chances / chances.sum(), candidates):
            candidate["probability"] = chance
        top = next((c for c in candidates if c["text"]), {"text": "", "score": -np.inf})
        n_best = [{key: value if isinstance(value, str) else float(value) for key, value in c.items()} for c in candidates]
        found.append((top["text"], float(top["score"]), float(null), n_best))  # n_best: for a file, as numbers JSON knows
    return found


# ---- the same scores for both --------------------------------------------------------------------------------------

def made_up_scores(windows, seed=0):
    """Scores such as a trained model gives: noise, one high start and a high end a little after it, and now and then [CLS].
    Two lists of (T,) float32 arrays."""
    rng = np.random.default_rng(seed)
    starts, ends = [], []
    for window in windows:
        start, end = rng.normal(size=(2, len(window.ids))).astype(np.float32)
        pieces = len(window.offsets)
        if pieces:
            i = window.first + int(rng.integers(pieces))
            j = min(i + int(rng.integers(8)), window.first + pieces - 1)
            start[i] += 8
            end[j] += 8
        start[0] += 8 * rng.random()
        end[0] += 8 * rng.random()
        starts.append(start)
        ends.append(end)
    return starts, ends


# ---- checks before any time ----------------------------------------------------------------------------------------

def agree(tokenizer, theirs, questions):
    """Raise ValueError unless both ways give the same windows, where a passage has one, and the same answers."""
    windows = list(featurise(tokenizer, questions, LENGTH))
    encoded, starts, ends = their_windows(theirs, questions)
    of_question = collections.Counter(w.question for w in windows)
    sample = encoded["overflow_to_sample_mapping"]
    their_count, compared = collections.Counter(sample), 0
    place = {number: w for w, number in enumerate(sample)}
    for window in windows:
        number = window.question
        if of_question[number] == their_count[number] == 1 and window.first < 66:  # the question was not cut
            w = place[number]
            same = (window.ids, window.types, window.start, window.end) == \
                (encoded["input_ids"][w], encoded["token_type_ids"][w], starts[w], ends[w])
            if not same:
                raise ValueError(f"question {questions[number].id}: the windows differ")
            compared += 1
    scores = made_up_scores(windows)
    ours = decode(questions, windows, *scores, BEST, LONGEST, max_context=False)
    expected = their_answers(questions, their_features(questions, windows), *scores)
    for question, our, (text, score, null, _) in zip(questions, ours, expected):
        if our.text != text or abs(our.score - score) > 1e-5 or abs(our.null - null) > 1e-5:
            raise ValueError(f"question {question.id}: the answers differ, {our.text!r} and {text!r}")
    return {"windows_compared": compared, "answers_compared": len(questions)}


# ---- times -----------------------------------------------------------------------------------------------------------

def timed(function):
    """(wall seconds, processor seconds)."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(ours, theirs, parts, rounds):
    """Seconds of both on each part, in changing order: a list of ((our wall, our cpu), (their wall, their cpu))."""
    found = []
    for number in range(rounds):
        for at, part in enumerate(parts):
            if (number + at) % 2:
                b, a = timed(lambda: theirs(part)), timed(lambda: ours(part))
            else:
                a, b = timed(lambda: ours(part)), timed(lambda: theirs(part))
            found.append((a, b))
    return found


def summary(times, count):
    """Medians of the ratios with their quartiles, and questions a second."""
    result = {}
    for column, name in ((1, "cpu"), (0, "wall")):
        ratios = [b[column] / a[column] for a, b in times]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        result[name] = {"ratio": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)],
                        "ours_per_second": round(count / sum(a[column] for a, _ in times)),
                        "theirs_per_second": round(count / sum(b[column] for _, b in times))}  # fmt: skip
    return result


def measure(data="builtin", weights="minilm", limit=0, part=250, rounds=3, note=""):
    """Compare and time both ways on the training questions. Returns a dict, as it is written to the file."""
    import tokenizers
    import transformers

    directory = find_weights(weights)
    tokenizer, theirs = load_tokenizer(directory), transformers.AutoTokenizer.from_pretrained(directory)
    loaded = load_squad("train", data)
    questions = loaded.questions[: limit or None]
    checked = agree(tokenizer, theirs, questions)
    parts = [questions[i : i + part] for i in range(0, len(questions), part)]
    featurising = in_turn(lambda qs: list(featurise(tokenizer, qs, LENGTH)), lambda qs: their_windows(theirs, qs), parts, rounds)
    prepared = []
    for qs in parts:
        windows = list(featurise(tokenizer, qs, LENGTH))
        prepared.append((qs, windows, their_features(qs, windows), made_up_scores(windows)))
    decoding = in_turn(lambda p: decode(p[0], p[1], *p[3], BEST, LONGEST), lambda p: their_answers(p[0], p[2], *p[3]),
                       prepared, rounds)
    count = rounds * len(questions)
    return {
        "note": note, "data": source_name(data), "sha256": loaded.sha256, "questions": len(questions),
        "windows": sum(len(p[1]) for p in prepared), "weights": source_name(weights), "length": LENGTH, "part": part,
        "rounds": rounds, **checked, "featurise": summary(featurising, count), "decode": summary(decoding, count),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "tokenizers": tokenizers.__version__,
                     "transformers": transformers.__version__},
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="builtin, or a directory in the course's format")
    parser.add_argument("--weights", default="minilm", help="whose vocabulary")
    parser.add_argument("--limit", type=int, default=0, help="only so many questions; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what the reader must know of the machine; goes into the file")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    result = measure(options.data, options.weights, options.limit, rounds=options.rounds, note=options.note)
    print(f"{result['questions']:,} questions, {result['windows']:,} windows; the same before any time was taken: "
          f"{result['windows_compared']:,} windows, {result['answers_compared']:,} answers")
    for name in ("featurise", "decode"):
        for clock in ("cpu", "wall"):
            r = result[name][clock]
            print(f"{name:<10} {clock:<5} {r['ratio']:6.2f} times as fast ({r['quartiles'][0]:.2f} to {r['quartiles'][1]:.2f}): "
                  f"{r['ours_per_second']:,} questions a second, theirs {r['theirs_per_second']:,}")
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
