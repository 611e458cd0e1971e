"""Compiled languages: Go, Rust, the JVM's and .NET's, built with their own tools and started from what those make."""

from __future__ import annotations

import re
from pathlib import Path

from devloop.scaffold.draft import Draft, Value, literal
from devloop.scaffold.files import json_of, name_of, port_number, text_of, toml_of

_GO_PORT = re.compile(r'(?:ListenAndServe\w*\(|Addr:|Listen\("tcp",|\.Run\(|\.Start\(|\.Listen\()\s*"[^":]*:(\d{2,5})"')
_RUST_PORT = re.compile(
    r'"(?:0\.0\.0\.0|127\.0\.0\.1|localhost|\[::1?\]):(\d{2,5})"|\(\[(?:\d+,\s*){3}\d+\],\s*(\d{2,5})\)'
)
_SERVER_PORT = re.compile(
    r"^\s*(?:server|quarkus\.http|micronaut\.server)\.port\s*[=:]\s*(?:\$\{\w+:)?(\d{2,5})|^server:\s*\n\s+port:\s*(?:\$\{\w+:)?(\d{2,5})",
    re.MULTILINE,
)


def _with_port(draft: Draft, match: re.Match[str] | None) -> Draft:
    found = port_number(next(filter(None, match.groups()), "")) if match else None
    if found is not None:
        draft.settings["ports"] = {"http": found}
    return draft


def go(folder: Path, top: Path) -> Draft | None:
    """A package main of a module."""
    main = folder / "main.go"
    module = next((each for each in (folder, *_between(folder, top)) if (each / "go.mod").is_file()), None)
    if module is None or not re.search(r"^package main\b", text_of(main), re.MULTILINE):
        return None
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name_of(folder))
    draft = Draft(name_of(folder), {"command": f"tmp/{name}", "build": f"go build -o tmp/{name} .", "ignore": ["tmp/"]})
    if folder.parent.name == "cmd" and folder != top:
        # A command of a module, cmd/NAME, is run from the module's folder and made of all of it.
        package = f"./{folder.relative_to(module).as_posix()}"
        quoted = f"'{package}'" if re.search(r"[^A-Za-z0-9_./-]", package) and "'" not in package else package
        draft.settings["build"] = f"go build -o tmp/{name} {literal(quoted)}"
        draft.settings["cwd"] = literal(module.relative_to(top).as_posix()) if module != top else ""
    return _with_port(draft, _GO_PORT.search(text_of(main)))


def rust(folder: Path, top: Path) -> Draft | None:
    """A package with a main.rs."""
    package = toml_of(folder / "Cargo.toml").get("package")
    if not isinstance(package, dict) or not (folder / "src" / "main.rs").is_file():
        return None
    name = str(package.get("default-run") or package.get("name") or name_of(folder))
    # A workspace's members are built into the workspace's folder.
    home = next((place for place in _between(folder, top) if "workspace" in toml_of(place / "Cargo.toml")), folder)
    up = "../" * len(folder.relative_to(home).parts)
    program = f"{up}target/debug/{name}"
    command: Value = program if re.fullmatch(r"[\w./-]+", program) else [literal(program)]
    draft = Draft(name_of(folder), {"build": "cargo build", "command": command})
    return _with_port(draft, _RUST_PORT.search(text_of(folder / "src" / "main.rs")))


_JVM_GOALS = (
    # (a word of the build file, Maven's goal, Gradle's task, whether it reloads by itself)
    ("quarkus", "quarkus:dev", "quarkusDev", True),
    ("micronaut", "mn:run", "run", False),
    ("spring", "spring-boot:run", "bootRun", False),
)


def jvm(folder: Path, _: Path) -> Draft | None:
    """Quarkus, Micronaut, Spring Boot; of Gradle's projects, those with the application plugin too."""
    kinds = (
        ("pom.xml", "mvnw", "mvn", 1),
        ("build.gradle", "gradlew", "gradle", 2),
        ("build.gradle.kts", "gradlew", "gradle", 2),
    )
    for file, wrapper, program, which in kinds:
        text = text_of(folder / file)
        if not text:
            continue
        runner = f"./{wrapper}" if (folder / wrapper).is_file() else program
        for goal in _JVM_GOALS:
            if goal[0] in text:
                watch: list[Value] = [file] if goal[3] else ["src"]
                settings: dict[str, Value] = {
                    "command": f"{runner} {goal[which]}",
                    "ports": {"http": 8080},
                    "watch": watch,
                }
                draft = Draft(name_of(folder), settings)
                if goal[3]:
                    draft.remarks["watch"] = "It reloads the code itself; devloop restarts it for new dependencies."
                return _with_port(draft, _SERVER_PORT.search(_settings(folder)))
        if which == 2 and re.search(r"\bapplication\b|mainClass", text):
            return Draft(name_of(folder), {"command": f"{runner} run", "watch": ["src"]})
        if which == 1 and "exec-maven-plugin" in text:
            return Draft(name_of(folder), {"command": f"{runner} compile exec:java", "watch": ["src"]})
    return None


def _settings(folder: Path) -> str:
    home = folder / "src" / "main" / "resources"
    return "\n".join(text_of(home / f"application.{kind}") for kind in ("properties", "yml", "yaml"))


def dotnet(folder: Path, _: Path) -> Draft | None:
    """A web, worker or console project; its port is that of the first profile of launchSettings.json."""
    projects = [each for kind in ("csproj", "fsproj", "vbproj") for each in sorted(folder.glob(f"*.{kind}"))]
    texts = [text_of(each) for each in projects]
    if not any(re.search(r"Sdk\.(?:Web|Worker)\b|<OutputType>\s*Exe", text) for text in texts):
        return None
    draft = Draft(name_of(folder), {"command": "dotnet run", "ignore": ["bin/", "obj/"]})
    profiles = json_of(folder / "Properties" / "launchSettings.json").get("profiles")
    for profile in profiles.values() if isinstance(profiles, dict) else ():
        url = str(profile.get("applicationUrl", "")) if isinstance(profile, dict) else ""
        if match := re.search(r"http://[^:;/]+:(\d{2,5})", url):
            return _with_port(draft, match)
    return draft


def _between(folder: Path, top: Path) -> list[Path]:
    """The folders above `folder`, up to `top`."""
    return [each for each in folder.parents if each == top or each.is_relative_to(top)] if folder != top else []
