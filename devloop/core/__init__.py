"""Pure state machines: events in, commands out. No I/O, no event loop, no clock of their own.

Every method that needs the time is given it, as monotonic nanoseconds. So a service's whole life is tested in
microseconds, with no process; `devloop.engine` is what carries the commands out.
"""
