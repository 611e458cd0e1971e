"""The figures that the README quotes, each beside what others do in the same run.

    python -m benchmarks                     all of them
    python -m benchmarks save_to_process     one
    python -m benchmarks --quick             fewer rounds, to see that they work
    python -m benchmarks.peers --install     the programs to compare with

Nothing here passes or fails by a time. Results go to benchmarks/results/ as JSON and to stdout as Markdown.
"""
