"""From the folder: what each kind of project is started with during development.

One rule for each kind of project, tried in order; the first that fits a folder makes its service. The folder
itself is looked at, and one level of subfolders, two below the usual homes of a monorepo's parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from devloop.scaffold.compiled_apps import dotnet, go, jvm, rust
from devloop.scaffold.draft import Draft, Value, literal
from devloop.scaffold.files import json_of, name_of, port_number, text_of, toml_of
from devloop.scaffold.python_apps import django, python_app, python_script

_HOMES = frozenset({"apps", "services", "packages", "cmd", "src", "backend", "frontend", "projects"})
_PASSED_OVER = frozenset(
    {
        "node_modules",
        "vendor",
        "dist",
        "build",
        "target",
        "venv",
        "env",
        "docs",
        "doc",
        "test",
        "tests",
        "examples",
        "public",
    }
)
MOST_FOLDERS = 200
"""More subfolders than this are not looked at: it is a start that is wanted, not an inventory."""

Rule = Callable[[Path, Path], Draft | None]
"""(folder, top folder) → its service, if the rule fits."""


def from_folder(top: Path) -> list[Draft]:
    """The services found; their `cwd` is relative to `top`; one that runs in `top` has none."""
    parts: list[Draft] = []
    for folder in list(_subfolders(top))[:MOST_FOLDERS]:
        if (draft := _detect(folder, top)) is not None:
            draft.settings.setdefault("cwd", literal(folder.relative_to(top).as_posix()))
            parts.append(draft)
    whole = _detect(top, top)
    if whole is None or (parts and _is_workspace(top)):
        return parts
    return [whole, *parts]


def _subfolders(top: Path) -> Iterator[Path]:
    for folder in _folders(top):
        yield folder
        if folder.name in _HOMES:
            for inner in _folders(folder):
                yield inner
                if inner.name == "cmd":
                    yield from _folders(inner)
        elif (folder / "cmd").is_dir():
            yield from _folders(folder / "cmd")


def _folders(folder: Path) -> list[Path]:
    try:
        found = [each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()]
    except OSError:
        return []
    return sorted(each for each in found if each.name not in _PASSED_OVER and not each.name.startswith("."))


def _detect(folder: Path, top: Path) -> Draft | None:
    return next((draft for rule in RULES if (draft := rule(folder, top)) is not None), None)


def _is_workspace(top: Path) -> bool:
    """Whether the top folder's own project only holds the others together."""
    return (
        "workspaces" in json_of(top / "package.json")
        or (top / "pnpm-workspace.yaml").is_file()
        or (top / "go.work").is_file()
        or "workspace" in toml_of(top / "Cargo.toml")
    )


# JavaScript

_RELOADS_ITSELF = re.compile(
    r"\b(vite|next|nuxt|astro|remix|gatsby|ng serve|react-scripts|vue-cli-service|webpack|parcel|nodemon"
    r"|ts-node-dev|tsx watch|svelte-kit|expo|wrangler|--watch|--hot)\b"
)
_DEV_PORTS = {
    "vite": 5173, "svelte-kit": 5173, "next": 3000, "nuxt": 3000, "astro": 4321, "remix": 3000,
    "gatsby": 8000, "react-scripts": 3000, "ng serve": 4200, "vue-cli-service": 8080, "wrangler": 8787,
}  # fmt: skip
_PORT_WORD = re.compile(r"(?:--port[= ]|-p[= ]|\bPORT=)(\d{2,5})\b")


def _javascript(folder: Path, top: Path) -> Draft | None:
    data = json_of(folder / "package.json")
    scripts = data.get("scripts")
    if not isinstance(scripts, dict):
        return None
    script = next((name for name in ("dev", "start:dev", "start", "serve") if isinstance(scripts.get(name), str)), None)
    if script is None:
        return None
    line = str(scripts[script])
    build = scripts.get("build")
    draft = Draft(name_of(folder), {"command": f"{_package_manager(folder, top)} run {script}"})
    if match := _PORT_WORD.search(line):
        port = port_number(match.group(1))
        draft.settings["ports"] = {"http": port} if port else {}
    else:
        port = next((port for word, port in _DEV_PORTS.items() if re.search(rf"\b{word}\b", line)), None)
        port = port or _listens_on(folder, line)
        draft.settings["ports"] = {"http": port} if port else {}
    if isinstance(build, str) and STARTS_WHAT_WAS_BUILT.search(line):
        draft.settings["build"] = f"{_package_manager(folder, top)} run build"
        draft.settings["ignore"] = ["dist/", "build/", "out/", ".next/", ".output/"]
    elif _RELOADS_ITSELF.search(line):
        draft.settings["watch"] = ["package.json"]
        draft.remarks["watch"] = "Its own dev server reloads the code; devloop restarts it for new dependencies."
    return draft


STARTS_WHAT_WAS_BUILT = re.compile(
    r"(?:^|[\s/])(?:dist|build|out|\.output|\.next)/|\b(?:next|nuxt|remix-serve|astro) (?:start|preview)\b"
)
"""A script of package.json that runs what the build script makes."""
_LISTEN = re.compile(
    r"\.listen\(\s*(?:\{\s*port:\s*)?(\d{2,5})\b|\bPORT\s*(?:\|\||\?\?)\s*[\"']?(\d{2,5})\b|\bport\s*[:=]\s*(\d{4,5})\b"
)


def _listens_on(folder: Path, line: str) -> int | None:
    """The port that the sources name, in the file that the script starts or one with a usual name."""
    named = re.findall(r"[\w./-]+\.(?:js|mjs|cjs|ts)\b", line)
    usual = [
        f"{base}{name}.{kind}"
        for base in ("", "src/")
        for name in ("index", "server", "app", "main")
        for kind in ("js", "ts", "mjs")
    ]
    for name in (*named, *usual):
        if match := _LISTEN.search(text_of(folder / name)):
            return port_number(next(filter(None, match.groups())))
    return None


def _node_script(folder: Path, _: Path) -> Draft | None:
    """A Node program that has no script for it: package.json's `main`, or a file of a usual name."""
    data = json_of(folder / "package.json")
    if not data:
        return None
    names = [str(data.get("main") or ""), "server.js", "index.js", "app.js"]
    name = next((each for each in names if each and "\0" not in each and (folder / each).is_file()), None)
    if name is None or not re.search(r"\.listen\(|createServer", text_of(folder / name)):
        return None
    draft = Draft(name_of(folder), {"command": ["node", literal(name)]})
    if (port := _listens_on(folder, name)) is not None:
        draft.settings["ports"] = {"http": port}
    return draft


def _package_manager(folder: Path, top: Path) -> str:
    locks = {"pnpm-lock.yaml": "pnpm", "yarn.lock": "yarn", "bun.lock": "bun", "bun.lockb": "bun"}
    for place in (folder, top):
        for lock, program in locks.items():
            if (place / lock).is_file():
                return program
    return "npm"


def _deno(folder: Path, _: Path) -> Draft | None:
    tasks = json_of(folder / "deno.json").get("tasks")
    task = next((name for name in ("dev", "start") if isinstance(tasks, dict) and name in tasks), None)
    return Draft(name_of(folder), {"command": f"deno task {task}"}) if task else None


# Others


def _rails(folder: Path, _: Path) -> Draft | None:
    if not (folder / "bin" / "rails").is_file():
        return None
    draft = Draft(name_of(folder), {"command": "bin/rails server -p 3000", "ports": {"http": 3000}})
    draft.settings["watch"] = ["config", "Gemfile.lock"]
    draft.remarks["watch"] = "Rails reloads the code under app/ itself; the rest needs a restart."
    return draft


def _rack(folder: Path, _: Path) -> Draft | None:
    settings: dict[str, Value] = {"command": "bundle exec rackup -p 9292", "ports": {"http": 9292}}
    return Draft(name_of(folder), settings) if (folder / "config.ru").is_file() else None


def _phoenix(folder: Path, _: Path) -> Draft | None:
    if ":phoenix" not in text_of(folder / "mix.exs"):
        return None
    draft = Draft(
        name_of(folder),
        {"command": "mix phx.server", "ports": {"http": 4000}, "watch": ["config", "mix.exs"]},
    )
    draft.remarks["watch"] = "Phoenix reloads the code under lib/ itself."
    return draft


def _laravel(folder: Path, _: Path) -> Draft | None:
    settings: dict[str, Value] = {
        "command": "php artisan serve --port=8000",
        "ports": {"http": 8000},
        "watch": [".env?"],
    }
    settings["watch"] = ["config"] if (folder / "config").is_dir() else ["artisan"]
    return Draft(name_of(folder), settings) if (folder / "artisan").is_file() else None


def _sinatra(folder: Path, _: Path) -> Draft | None:
    for name in ("app.rb", "server.rb", "main.rb"):
        if re.search(r"^require ['\"]sinatra", text_of(folder / name), re.MULTILINE):
            runner = "bundle exec ruby" if (folder / "Gemfile").is_file() else "ruby"
            settings: dict[str, Value] = {"command": f"{runner} {name} -p 4567", "ports": {"http": 4567}}
            return Draft(name_of(folder), settings)
    return None


def _php(folder: Path, _: Path) -> Draft | None:
    root = next((each for each in ("public/", "") if (folder / each / "index.php").is_file()), None)
    if root is None:
        return None
    command = f"php -S 127.0.0.1:8000{f' -t {root}' if root else ''}"
    draft = Draft(name_of(folder), {"command": command, "ports": {"http": 8000}, "watch": []})
    draft.remarks["watch"] = "PHP reads its files for each request: nothing to restart for."
    return draft


def _make(folder: Path, _: Path) -> Draft | None:
    text = text_of(folder / "Makefile")
    target = next(
        (name for name in ("dev", "run", "serve") if re.search(rf"^{name}\s*:(?!=)", text, re.MULTILINE)),
        None,
    )
    return Draft(name_of(folder), {"command": f"make {target}"}) if target else None


def _pages(folder: Path, _: Path) -> Draft | None:
    if not (folder / "index.html").is_file():
        return None
    command = "python3 -m http.server --bind 127.0.0.1 8000"
    draft = Draft(name_of(folder), {"command": command, "ports": {"http": 8000}, "watch": []})
    draft.remarks["watch"] = "It reads its files for each request: nothing to restart for."
    return draft


RULES: tuple[Rule, ...] = (
    django, _rails, _javascript, _deno, go, rust, jvm, dotnet, _phoenix, _laravel, _rack, python_app, _sinatra, _php,
    _make, python_script, _node_script, _pages,
)  # fmt: skip
