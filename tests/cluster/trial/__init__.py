"""The trial: the market under load, while developers and the cluster do to it what they do in a day.

`figures.py` counts (pure), `floors.py` says what is allowed, `schedule.py` orders the events, `events.py` carries them
out, `market.py` is the application with its load, `run.py` one whole run. By hand:

    python -m tests.cluster.trial --seed 7 --minutes 60
"""
