"""Every test, and every kernel that nbval starts, runs in the surroundings in which the notebooks were executed."""

import os
import signal

from tools.execute import KERNEL_ENV

os.environ.update(KERNEL_ENV)
# A script that starts the tests with "&" hands them a Ctrl-C that is ignored, and so would every run that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=30, help="how often tests/test_kill.py kills a training run")
