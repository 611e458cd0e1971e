"""Which files of a service have changed their content.

`watcher` is what the engine uses; `inotify` and `polling` are its two sources of events; `ignore` says what
is not looked at, `fingerprint` what has really changed.
"""
