"""A run that was started from a cell outlives what started it."""

import subprocess
import sys
import time

import pytest

from vdmini.core import BadInput
from vdmini.launch import Run, status_line

START = """
import sys
from vdmini.launch import launch
from vdmini.recipe import TrainConfig
from vdmini.surgery import Plan
config = TrainConfig.paper("tiny-svd", steps=4, batch=2, clips=4, mca_from=2, save_every=2)
launch("tiny-svd", Plan.paper("tiny-svd"), sys.argv[1], config)
"""


@pytest.mark.slow
def test_run_outlives_the_process_that_started_it(tmp_path):
    subprocess.run([sys.executable, "-c", START, str(tmp_path / "run")], check=True, timeout=120)
    run = Run(tmp_path / "run")
    until = time.monotonic() + 180
    while run.running and time.monotonic() < until:
        time.sleep(0.2)
    assert run.status()["student"], run.said(5)
    assert list(run.table().step) == [1, 2, 3, 4]
    assert status_line(run.status()).startswith("done: step 4 of 4")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(BadInput, match="is no run"):
        Run(tmp_path)
