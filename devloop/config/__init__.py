"""devloop.toml → frozen dataclasses.

`model` is what the rest of devloop sees, `schema` is the shape of the file, `load` goes from one to the
other. Nothing is imported here, because `core` needs `model` alone and the command line neither.
"""
