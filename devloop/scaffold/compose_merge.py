"""How compose files are laid over each other: override files, `extends`, several documents.

The rules are the Compose specification's "Merge", in the form that compose-go's `override` package gives them:
mappings are merged, sequences appended, `command`, `entrypoint` and a healthcheck's `test` replaced; entries that mean
the same (a port, a variable, an env file) are there once, the later one winning.
"""

from __future__ import annotations

from devloop.scaffold.yaml_text import Mapping_, Sequence_, Tag, Value

_REPLACED = {("command",), ("entrypoint",), ("healthcheck", "test")}
_PAIRS = {
    ("environment",), ("labels",), ("annotations",), ("sysctls",), ("build", "args"), ("build", "labels"),
    ("build", "additional_contexts"), ("extra_hosts",), ("build", "extra_hosts"),
}  # fmt: skip
_NAMED = {("depends_on",), ("networks",), ("models",)}
_LISTS = {("env_file",), ("dns",), ("dns_search",), ("tmpfs",), ("label_file",)}


def merged_file(base: Mapping_, over: Mapping_, notices: list[str]) -> Mapping_:
    """A whole file with another one over it."""
    return _merged(base, over, (), notices)


def merged_service(base: Mapping_, over: Mapping_, notices: list[str]) -> Mapping_:
    """A service with another one over it, as `extends` does."""
    return _merged(base, over, ("services", ""), notices)


def _merged(base: Mapping_, over: Mapping_, path: tuple[str, ...], notices: list[str]) -> Mapping_:
    made = base.copied()
    for key, value in over.items():
        at, tag = over.where(key), over.tags.get(key)
        if tag is Tag.RESET:
            made.pop(key, None)
        elif tag is Tag.OVERRIDE or key not in made:
            made.put(key, value, at)
        else:
            here = (*path, key)
            in_service = here[2:] if len(here) > 2 and here[0] == "services" else ()
            made.put(key, _one(made[key], value, at, here, in_service, notices), at)
    return made


def _one(base: Value, over: Value, at: str, path: tuple[str, ...], key: tuple[str, ...], notices: list[str]) -> Value:
    if key in _REPLACED:
        return over
    if over is None:
        return base
    if base is None:
        return over
    if key in _PAIRS:
        base, over = pairs(base), pairs(over)
    elif key in _NAMED:
        base, over = named(base), named(over)
    elif key in _LISTS:
        base, over = listed(base, at), listed(over, at)
    elif key == ("build",):
        base, over = _context(base, at), _context(over, at)
    if isinstance(base, Mapping_) and isinstance(over, Mapping_):
        return _merged(base, over, path, notices)
    if isinstance(base, Sequence_) and isinstance(over, Sequence_):
        return _appended(base, over)
    if isinstance(base, Mapping_ | Sequence_) or isinstance(over, Mapping_ | Sequence_):
        notices.append(f"{at}: {path[-1]} has another form than what it overrides; this one counts alone")
    return over


def _appended(base: Sequence_, over: Sequence_) -> Sequence_:
    found: dict[str, tuple[Value, str]] = {}
    for value, at in (*base.places(), *over.places()):
        found[_identity(value)] = (value, at)
    made = Sequence_(over.here)
    for value, at in found.values():
        made.add(value, at)
    return made


def _identity(value: Value) -> str:
    """What makes an entry of a sequence the same as another one."""
    if not isinstance(value, Mapping_):
        return f"={value}"
    if "path" in value:
        return f"={value['path']}"
    if "target" in value and ("published" in value or "protocol" in value):
        return f"{value.get('host_ip')}:{value.get('published')}:{value['target']}/{value.get('protocol', 'tcp')}"
    return repr(sorted((key, str(each)) for key, each in value.items()))


def pairs(value: Value) -> Value:
    """`[A=1, B]` as `{A: "1", B: null}`; what is neither is left as it is."""
    if not isinstance(value, Sequence_):
        return value
    made = Mapping_(value.here)
    for each, at in value.places():
        if isinstance(each, Mapping_):  # `- A: 1`, which people write and compose refuses
            for key, inner in each.items():
                made.put(key, inner, each.where(key))
            continue
        name, sign, text = scalar(each).partition("=")
        made.put(name, text if sign else None, at)
    return made


def named(value: Value) -> Value:
    """`[a, b]` as `{a: null, b: null}`; what is neither is left as it is."""
    if not isinstance(value, Sequence_):
        return value
    made = Mapping_(value.here)
    for each, at in value.places():
        if not isinstance(each, Mapping_ | Sequence_):
            made.put(scalar(each), None, at)
    return made


def listed(value: Value, at: str) -> Sequence_:
    """A single value as a sequence of one."""
    if isinstance(value, Sequence_):
        return value
    made = Sequence_(at)
    made.add(value, at)
    return made


def _context(value: Value, at: str) -> Value:
    if isinstance(value, Mapping_):
        return value
    made = Mapping_(at)
    made.put("context", value, at)
    return made


def scalar(value: Value) -> str:
    """A scalar as the text that a container would get; a mapping or a sequence as nothing."""
    if value is None or isinstance(value, Mapping_ | Sequence_):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
