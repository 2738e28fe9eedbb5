"""Every test, and every kernel that nbval starts, runs in the surroundings in which the notebooks were executed."""

import os

from tools.execute import KERNEL_ENV

os.environ.update(KERNEL_ENV)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=30, help="how often tests/test_kill.py kills a training run")
