"""Python projects: Django, ASGI and WSGI applications, Streamlit, or a script that runs by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from devloop.scaffold.draft import Draft, Value
from devloop.scaffold.files import name_of, table, text_of, toml_of

_APP = re.compile(
    r"^(?P<name>\w+)\s*(?::[^=\n]+)?=\s*(?:\w+\.)?(?P<kind>FastAPI|Starlette|Quart|Litestar|Flask|Sanic)\(",
    re.MULTILINE,
)
_FACTORY = re.compile(r"^def (create_app|make_app)\(", re.MULTILINE)
_MOST_FILES = 300


def django(folder: Path, top: Path) -> Draft | None:
    """A manage.py. Its own reloader is left off: devloop's is the quicker one."""
    if "django" not in text_of(folder / "manage.py").lower():
        return None
    python = _runner(folder, top, "python")
    settings: dict[str, Value] = {
        "command": f"{python} manage.py runserver --noreload 8000",
        "ports": {"http": 8000},
    }
    return Draft(name_of(folder), settings)


def python_app(folder: Path, top: Path) -> Draft | None:
    """An application object in a module, by the framework that makes it."""
    wanted = _dependencies(folder)
    if not wanted & {"fastapi", "starlette", "uvicorn", "quart", "litestar", "flask", "sanic", "streamlit"}:
        return None
    for file, module in _modules(folder):
        text = text_of(file)
        if match := _APP.search(text):
            return _application(folder, top, module, match["name"], match["kind"])
        if "flask" in wanted and _FACTORY.search(text):
            return _application(folder, top, module, "", "Flask")
        if "streamlit" in wanted and re.search(r"^import streamlit\b", text, re.MULTILINE):
            command = f"{_runner(folder, top, 'streamlit')} run {file.relative_to(folder).as_posix()}"
            settings: dict[str, Value] = {"command": f"{command} --server.port 8501", "ports": {"http": 8501}}
            return Draft(name_of(folder), settings)
    return None


def _application(folder: Path, top: Path, module: str, name: str, kind: str) -> Draft:
    if kind == "Flask":
        app = f"{module}:{name}" if name else module
        command, port = f"{_runner(folder, top, 'flask')} --app {app} run --port 5000", 5000
    elif kind == "Sanic":
        command, port = f"{_runner(folder, top, 'sanic')} {module}:{name} --port 8000", 8000
    else:
        command, port = f"{_runner(folder, top, 'uvicorn')} {module}:{name} --port 8000", 8000
    draft = Draft(name_of(folder), {"command": command, "ports": {"http": port}})
    if (folder / "src").is_dir() and (folder / "src" / module.split(".")[0]).exists() and kind != "Flask":
        draft.settings["command"] = f"{command} --app-dir src"
    return draft


def python_script(folder: Path, top: Path) -> Draft | None:
    """A script with one of the usual names."""
    python = _runner(folder, top, "python3")
    for name in ("main.py", "app.py", "server.py", "run.py"):
        if (folder / name).is_file():
            return Draft(name_of(folder), {"command": f"{python} {name}"})
    return None


def _modules(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, module's name) of the folder's modules and its packages', likely ones first."""
    bases = [folder, folder / "src"]
    found: list[tuple[Path, str]] = []
    for base in bases:
        if base.is_dir():
            files = [*sorted(base.glob("*.py")), *sorted(base.glob("*/*.py"))][:_MOST_FILES]
            found += [(file, _module(file.relative_to(base))) for file in files]
    likely = ("main", "app", "asgi", "wsgi", "server", "api")
    found = [(file, module) for file, module in found if not module.startswith(("src.", "tests.", "test_", "venv."))]
    return iter(sorted(found, key=lambda each: (each[0].stem not in likely, len(each[1].split(".")))))


def _module(file: Path) -> str:
    parts = [*file.parts[:-1], file.stem]
    return ".".join(part for part in parts if part != "__init__")


def _dependencies(folder: Path) -> set[str]:
    """Names of the packages that the project says it needs, in lower case."""
    lines = [line for file in folder.glob("requirements*.txt") for line in text_of(file).splitlines()]
    data = toml_of(folder / "pyproject.toml")
    lines += [str(each) for each in table(data, "project").get("dependencies") or []]
    lines += table(data, "tool", "poetry", "dependencies")
    names = (re.match(r"\s*([A-Za-z0-9][\w.-]*)", line) for line in lines)
    return {match.group(1).lower() for match in names if match}


def _runner(folder: Path, top: Path, program: str) -> str:
    """How a program of the project's environment is called: through uv, poetry, a venv, or by its name."""
    for place in (folder, top):
        if (place / "uv.lock").is_file():
            return f"uv run {program}"
        if (place / "poetry.lock").is_file():
            return f"poetry run {program}"
    if (folder / ".venv" / "bin").is_dir():
        return f".venv/bin/{program}"
    if program == "python":
        return "python3"
    return program
