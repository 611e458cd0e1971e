"""From the folder: what each kind of project is started with during development.

One rule for each kind of project, tried in order; the first that fits a folder makes its service. The folder
itself is looked at, and one level of subfolders, two below the usual homes of a monorepo's parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from devloop.scaffold.draft import Draft, Value, literal
from devloop.scaffold.files import json_of, name_of, text_of, toml_of
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
    draft = Draft(name_of(folder), {"command": f"{_package_manager(folder, top)} run {script}"})
    if match := _PORT_WORD.search(line):
        draft.settings["ports"] = {"http": int(match.group(1))}
    else:
        port = next((port for word, port in _DEV_PORTS.items() if re.search(rf"\b{word}\b", line)), None)
        draft.settings["ports"] = {"http": port} if port else {}
    if _RELOADS_ITSELF.search(line):
        draft.settings["watch"] = ["package.json"]
        draft.remarks["watch"] = "Its own dev server reloads the code; devloop restarts it for new dependencies."
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


# Compiled languages

_GO_PORT = re.compile(r'(?:ListenAndServe\w*\(|Addr:|Listen\("tcp",|\.Run\(|\.Start\(|\.Listen\()\s*"[^":]*:(\d{2,5})"')


def _go(folder: Path, top: Path) -> Draft | None:
    main = folder / "main.go"
    module = next((each for each in (folder, *_between(folder, top)) if (each / "go.mod").is_file()), None)
    if module is None or not re.search(r"^package main\b", text_of(main), re.MULTILINE):
        return None
    name = name_of(folder)
    draft = Draft(name, {"command": f"tmp/{name}", "build": f"go build -o tmp/{name} .", "ignore": ["tmp/"]})
    if folder.parent.name == "cmd" and folder != top:
        # A command of a module, cmd/NAME, is run from the module's folder and made of all of it.
        draft.settings["build"] = f"go build -o tmp/{name} ./{folder.relative_to(module).as_posix()}"
        draft.settings["cwd"] = literal(module.relative_to(top).as_posix()) if module != top else ""
    if match := _GO_PORT.search(text_of(main)):
        draft.settings["ports"] = {"http": int(match.group(1))}
    return draft


def _rust(folder: Path, top: Path) -> Draft | None:
    package = toml_of(folder / "Cargo.toml").get("package")
    if not isinstance(package, dict) or not (folder / "src" / "main.rs").is_file():
        return None
    name = str(package.get("default-run") or package.get("name") or name_of(folder))
    # A workspace's members are built into the workspace's folder.
    home = next((place for place in _between(folder, top) if "workspace" in toml_of(place / "Cargo.toml")), folder)
    up = "../" * len(folder.relative_to(home).parts)
    return Draft(name_of(folder), {"build": "cargo build", "command": f"{up}target/debug/{name}"})


def _jvm(folder: Path, _: Path) -> Draft | None:
    kinds = (("pom.xml", "mvnw", "mvn", "spring-boot:run"), ("build.gradle", "gradlew", "gradle", "bootRun"))
    for file, wrapper, program, goal in kinds:
        for name in (file, f"{file}.kts"):
            if "spring" in text_of(folder / name):
                runner = f"./{wrapper}" if (folder / wrapper).is_file() else program
                settings: dict[str, Value] = {
                    "command": f"{runner} {goal}",
                    "ports": {"http": 8080},
                    "watch": ["src"],
                }
                return Draft(name_of(folder), settings)
    return None


def _dotnet(folder: Path, _: Path) -> Draft | None:
    projects = [each for each in sorted(folder.glob("*.csproj")) if "Sdk.Web" in text_of(each)]
    settings: dict[str, Value] = {"command": "dotnet run", "ignore": ["bin/", "obj/"]}
    return Draft(name_of(folder), settings) if projects else None


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
    draft = Draft(name_of(folder), {"command": "python3 -m http.server 8000", "ports": {"http": 8000}, "watch": []})
    draft.remarks["watch"] = "It reads its files for each request: nothing to restart for."
    return draft


RULES: tuple[Rule, ...] = (
    django, _rails, _javascript, _deno, _go, _rust, _jvm, _dotnet, _phoenix, _laravel, _rack, python_app,
    _make, python_script, _pages,
)  # fmt: skip


def _between(folder: Path, top: Path) -> list[Path]:
    """The folders above `folder`, up to `top`."""
    return [each for each in folder.parents if each == top or each.is_relative_to(top)] if folder != top else []
