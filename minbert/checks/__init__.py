"""Checks for the reader's work: `from minbert import checks; checks.attention(my_attention)`.

One function an exercise, in the module of its chapter; `checks.exercises()` lists them.
"""

from minbert.checks.engine import CheckFailed, exercises  # noqa: F401
from minbert.checks.ch01 import *  # noqa: F401,F403
from minbert.checks.ch02 import *  # noqa: F401,F403
from minbert.checks.ch03 import *  # noqa: F401,F403
from minbert.checks.ch04 import *  # noqa: F401,F403
from minbert.checks.ch05 import *  # noqa: F401,F403
from minbert.checks.ch06 import *  # noqa: F401,F403
from minbert.checks.ch07 import *  # noqa: F401,F403
from minbert.checks.ch09 import *  # noqa: F401,F403
from minbert.checks.ch11 import *  # noqa: F401,F403
