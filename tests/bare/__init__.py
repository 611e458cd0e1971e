"""README's commands on a machine that nobody prepared: `python3 -m tests.bare`, as root, from the checkout's root.

A Debian with Python, venv, make, git and certificates, and nothing else, in a root file system of its own; in it an
ordinary user with 1,024 open files and no terminal, who clones this checkout and types what README says. Needs nothing
but the standard library, debootstrap, git and util-linux. docs/bare-run.md has the rest.
"""
