"""What every check is made of.

A check calls the reader's work on small inputs and stops at the first thing that is wrong. It goes in this order:
does it run → shape, dtype → finite → are the inputs untouched → a tiny case worked by hand → an independent oracle.
When a value is wrong, the check recomputes what well-known mistakes would have given and names the one that fits.
It never looks at the reader's source, and never shows the solution.

    def attention(answer):
        check = Check("attention", see='Chapter 2, "Attention in one line"')
        got = check.run(answer, q, k, v)
        check.tensor(got, "the context", shape=(2, 3, 5, 4), dtype=torch.float64)
        check.equal(got, want, "the context", mistakes={
            "The scores are not divided by √Dh.": lambda: (q @ k.transpose(-2, -1)).softmax(-1) @ v,
        })
        check.passed()
"""

import json
from importlib.resources import files

import torch

# A test turns this off to see that wrong work is refused even when no known mistake fits.
DIAGNOSE = True


class CheckFailed(AssertionError):
    """The reader's work is not right yet; the message says what to look at."""

    def _render_traceback_(self):
        # A notebook shows this instead of a stack of our own calls, which would help nobody.
        return [f"CheckFailed: {self}"]


def exercises():
    """All exercises: a list of {id, number, chapter, title, kind, difficulty, minutes}, in the book's order."""
    return json.loads((files("minbert.checks") / "exercises.json").read_text(encoding="utf-8"))


def label(name):
    """For example "Exercise 2.1 (attention)"."""
    for exercise in exercises():
        if exercise["id"] == name:
            return f"Exercise {exercise['number']} ({name})"
    raise KeyError(f"no exercise {name!r} in checks/exercises.json: run python -m tools.exercises")


def not_written(name):
    """What a stub's check says."""
    return f"{label(name)}: not written yet"


def not_answered(name):
    """What the check of an investigation says before there is an answer."""
    return f"{label(name)}: not answered yet"


class Check:
    """One run of one check.

    Args:
        name: the exercise's id.
        see: where the chapter explains it.
    """

    def __init__(self, name, see):
        self.name = name
        self.see = see
        self.inputs = []

    def fail(self, what, expected=None, got=None, mistake=None):
        """Stop, and say why.

        Args:
            what: one sentence: what is not right.
            expected, got: shown under each other when given.
            mistake: one or two sentences that name the likely mistake.
        """
        lines = [f"{label(self.name)}: {what}"]
        if expected is not None or got is not None:
            lines += [f"  expected: {show(expected)}", f"  got:      {show(got)}"]
        if mistake and DIAGNOSE:
            lines.append(f"  Likely mistake: {mistake}")
        lines.append(f"  See: {self.see}")
        raise CheckFailed("\n".join(lines))

    def run(self, function, *args, mistakes=None, **kwargs):
        """Call the reader's function; an exception becomes a message. Tensors among the inputs must stay as they are.

        Args:
            mistakes: {exception type: the mistake it speaks of, or a function from the error's words to it (or to None)}.
        """
        before = [(value, value.clone()) for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        try:
            result = function(*args, **kwargs)
        except NotImplementedError as error:
            if "not written yet" in str(error):
                # It may be the stub of another exercise on which this one builds: the message names it.
                missing = str(error).partition("not written yet: ")[2] or self.name
                raise CheckFailed(not_written(missing)) from None
            self.fail(f"it stopped with NotImplementedError: {error}")
        except CheckFailed:
            raise
        except Exception as error:  # whatever the reader's code raises becomes a message
            known = [text for kind, text in (mistakes or {}).items() if isinstance(error, kind)]
            first = (str(error).strip() or "no message").splitlines()[0]
            likely = known[0] if known else None
            self.fail(f"it stopped with {type(error).__name__}: {first}", mistake=likely(str(error)) if callable(likely) else likely)
        for value, copy in before:
            if value.shape != copy.shape or not torch.equal(value.nan_to_num(), copy.nan_to_num()):
                self.fail("an input was changed in place; the caller still needs it as it was.")
        if result is None:
            self.fail("it returned None. Is there a return statement?")
        return result

    def module(self, function, *args, **kwargs):
        """Make a module with the reader's class."""
        made = self.run(function, *args, **kwargs)
        self.true(isinstance(made, torch.nn.Module), "the class does not make a torch.nn.Module.",
                  expected="torch.nn.Module", got=type(made).__name__)
        return made

    def tensor(self, got, what, shape=None, dtype=None, shape_mistakes=None):
        """`got` must be a tensor of this shape and dtype with finite values.

        Args:
            shape_mistakes: {shape: the mistake that gives it}.
        """
        if not torch.is_tensor(got):
            self.fail(f"{what} should be a tensor.", "torch.Tensor", type(got).__name__)
        if shape is not None and tuple(got.shape) != tuple(shape):
            mistake = (shape_mistakes or {}).get(tuple(got.shape))
            self.fail(f"{what} has the wrong shape.", tuple(shape), tuple(got.shape), mistake)
        if dtype is not None and got.dtype != dtype:
            self.fail(f"{what} has the wrong dtype.", dtype, got.dtype)
        if got.is_floating_point() and not got.isfinite().all():
            bad = "NaN" if got.isnan().any() else "an infinite value"
            self.fail(f"{what} contains {bad}.")

    def equal(self, got, want, what, mistakes=None, tolerance=1e-9):
        """`got` must equal `want`; otherwise the first mistake whose value fits is named.

        Args:
            got, want: tensors, numbers, lists, strings…: compared as tensors if they are numbers.
            mistakes: {text: a function of nothing that recomputes what this mistake gives}.
            tolerance: absolute and relative, for numbers.
        """
        if same(got, want, tolerance):
            return
        likely = None
        if DIAGNOSE:
            for text, recompute in (mistakes or {}).items():
                wrong = recompute()
                if same(got, wrong, tolerance) and not same(wrong, want, tolerance):
                    likely = text
                    break
        if show(want) == show(got):  # equal in the digits and places that are shown: show the place that differs most
            want, got = at_the_largest_difference(want, got)
        self.fail(f"{what} is not right.", want, got, likely)

    def true(self, condition, what, mistake=None, expected=None, got=None):
        """A plain condition."""
        if not condition:
            self.fail(what, expected, got, mistake)

    def plain(self, got, what):
        """`got` as a float; it must be one number, in a tensor or not."""
        try:
            return float(got)
        except (TypeError, ValueError, RuntimeError):
            self.fail(f"{what} should be one number.", "a number", repr(got))

    def number(self, got, want, tolerance, what, unit=""):
        """The answer to an investigation: a number within a tolerance of the recorded one."""
        if got is None:
            raise CheckFailed(not_answered(self.name))
        try:
            value = float(got)
        except (TypeError, ValueError):
            self.fail(f"{what} should be a number.", "a number", repr(got))
        if value != value:
            self.fail(f"{what} should be a number.", "a number", "NaN")
        if not abs(value - want) <= tolerance:
            direction = "more" if value < want else "less"
            self.fail(f"{what} is not within {tolerance:g}{unit} of the recorded result: it should be {direction}. Look again at what is asked for, and in which unit.")

    def passed(self, note=None):
        """Say so. A check that gets here has tried everything."""
        print(f"{label(self.name)}: passed." + (f" {note}" if note else ""))


def same(a, b, tolerance):
    """Are two results equal, to a tolerance where they are numbers?"""
    if a is None or b is None or isinstance(a, str) or isinstance(b, str):
        return a is b or (isinstance(a, str) and isinstance(b, str) and a == b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b))
    try:
        a, b = doubles(a), doubles(b)
    except (TypeError, ValueError, RuntimeError):
        return bool(a == b)
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def doubles(value):
    """A number, a list of numbers or a tensor as a float64 tensor. (`torch.as_tensor` would round Python's numbers to float32.)"""
    if torch.is_tensor(value):
        return value.detach().to(torch.float64)
    return torch.tensor(value, dtype=torch.float64)


def show(value, most=4):
    """A short text for a value in a message: numbers rounded, long tensors cut."""
    if torch.is_tensor(value):
        if value.ndim == 0:
            return f"{value.item():.4g}"
        flat = value.detach().flatten()
        values = [f"{v:.4g}" for v in flat[:most].tolist()]
        dots = ", …" if flat.numel() > most else ""
        return f"{tuple(value.shape)} tensor [{', '.join(values)}{dots}]"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 200 else text[:200] + "…"


def at_the_largest_difference(want, got):
    """Texts for one place of two tensors of the same shape: the one where they differ most. Other things stay as they are."""
    try:
        a, b = doubles(want), doubles(got)
        place = (a - b).abs().argmax().item()
    except (TypeError, ValueError, RuntimeError):
        return want, got
    index = [int(i) for i in torch.unravel_index(torch.tensor(place), a.shape)]
    return f"{a.flatten()[place].item():.12g} at {index}", f"{b.flatten()[place].item():.12g} at {index}"


def randomise(module, seed=0, std=0.3):
    """Give every parameter of a module random float64 values: layer normalisations too, whose first values (1 and 0) hide mistakes.

    Returns the module.
    """
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return module


def random(*shape, seed=0, std=0.5):
    """A random float64 tensor, always the same. Small values: with large ones softmax is one-hot and hides mistakes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * std
