"""The project's benchmarks: the engine against raw standard-library baselines, in one run on one machine.

    make bench                                        or
    python -m tests.bench [--quick] [--only NAME] [--output DIR] [--peers FILE]

Nothing here is collected by pytest: a time is a figure to look at, not an assertion.
"""
