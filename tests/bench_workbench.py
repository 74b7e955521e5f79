"""What a click costs: python tests/bench_workbench.py

A click draws the map and works out the budget from the tables; the clip is made anew in the background. Both are held against
what a workbench without tables would do at each click: build the student, count it and time one forward.
"""

import time
from statistics import median

from vdmini.budget import recorded
from vdmini.cost import cost
from vdmini.surgery import Plan, make_student
from vdmini.teachers import load_teacher
from vdmini.widgets import Workbench

CLICKS = ["D.0.A.1", "U.3.R.1", "U.1.A.0", "D.2", "M", "U.3.A.2", "D.1.R.1", "U.0"]


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def click(bench: Workbench, block: str) -> tuple[float, float]:
    "Seconds until map and budget stand; seconds until the clip does."
    start = time.perf_counter()
    bench.history.toggle(block)
    answered = time.perf_counter() - start
    bench.background.wait()
    return answered, time.perf_counter() - start


def main() -> None:
    teacher = load_teacher("tiny-svd")
    bench = Workbench(teacher, recorded("importance"), recorded("cost"))
    bench.background.wait()
    answered, clip = zip(*[click(bench, b) for b in CLICKS * 2])
    naive = median(
        seconds(lambda: cost(make_student(teacher.network, Plan.paper("tiny-svd")), teacher.inputs(), repeats=1))
        for _ in range(3)
    )
    print(f"a click, map and budget: {1000 * median(answered):.0f} ms (worst {1000 * max(answered):.0f} ms of {len(answered)})")
    print(f"the plan's new clip:     {median(clip):.2f} s (worst {max(clip):.2f} s)")
    print(f"student built, counted and timed instead: {naive:.2f} s, {naive / median(answered):.0f} times the click")


if __name__ == "__main__":
    main()
