"""What an image's build makes and its CMD names: found in the Dockerfile's steps, to be built here before each start.

`RUN go build -o bin/server .` and `CMD ["/code/bin/server"]` become `build = "go build -o bin/server ."` and
`command = "bin/server"`. Paths in the image are led back to the build context by the stage's COPY and ADD.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from devloop.scaffold.dockerfile import Copy, Run, Stage, Words

_OUT = "tmp"
"""Where a program goes whose place in the image is outside of the code."""
_COMPILERS = re.compile(
    r"""^(?:\w+=\S*\s+)*(?:
        go\s+(?:build|install)\b | cargo\s+(?:build|install)\b | (?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+|rustc|zig)\s
      | cmake\s+--build\b | make\b | ninja\b | meson\s+compile\b | swift\s+build\b | dotnet\s+(?:publish|build)\b
      | (?:\./)?(?:mvnw?|mvnw)\s | (?:\./)?gradlew?\s | sbt\s | lein\s | mix\s+release | crystal\s+build | nim\s+c
      | (?:npm|pnpm|bun)\s+(?:run\s+)?build | (?:npm|pnpm|bun)\s+run\s+\S*(?:build|compile)\S*
      | yarn\s+(?:run\s+)?\S*(?:build|compile)\S* | (?:npx\s+|bunx\s+|pnpm\s+exec\s+|yarn\s+)?
        (?:tsc|nest\s+build|vite\s+build|next\s+build|esbuild|webpack|rollup|tsup|swc)\b
    )""",
    re.VERBOSE,
)
_OUTPUT_FLAG = re.compile(r"(?<=\s)(-o|--output|--out|-out)(=|\s+)(\"[^\"]*\"|'[^']*'|[^\s;&|]+)")
_PATH = ("/usr/local/bin", "/usr/bin", "/bin", "/go/bin", "/usr/local/cargo/bin", "/root/.cargo/bin", "/usr/local/sbin")
"""Where a program without a slash is looked for in the image."""
_FILES = (".jar", ".js", ".mjs", ".cjs", ".dll", ".war")
_CROSS = re.compile(r"\b(?:GOOS|GOARCH)=\S*\s+")
_BUILT_FOLDERS = re.compile(r"(?:^|/)(?:dist|build|out|lib|target|bin|\.next|\.output|publish|release|_build)(?:/|$)")


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a build here makes, and how it is started."""

    build: str
    """Empty for what is in the code as it is, under another path than in the image."""
    command: Words
    cwd: str
    """Relative to the build context."""


@dataclass(frozen=True, slots=True)
class _Built:
    build: str
    path: str
    """Relative to `folder`."""
    folder: str


def built_here(stage: Stage, command: Words, workdir: str, context: Path) -> Artifact | None:
    """How to build what the command names. None if that is in the context as it is, or if no step makes it."""
    words = command
    if isinstance(words, str):
        try:
            words = shlex.split(words)
        except ValueError:
            return None
        if words[:1] == ["exec"]:
            words = words[1:]
        if any(word in ("&&", "||", ";", "|") for word in words):
            return None
    for index, word in enumerate(words[:6]):
        if word.startswith("-") or not word:
            continue
        if index == 0 and "/" not in word:
            places = [posixpath.join(folder, word) for folder in _PATH]
        elif "/" in word or word.endswith(_FILES):
            places = [posixpath.normpath(posixpath.join(workdir, word))]
        else:
            continue
        found = next((each for place in places if (each := _trace(stage, place, context, 0)) is not None), None)
        if found is not None:
            made = [*words[:index], found.path, *words[index + 1 :]]
            if index == 0 and "/" not in made[0]:
                made[0] = f"./{made[0]}"
            whole: Words = " ".join(made) if "*" in found.path else made
            return Artifact(found.build, whole, found.folder)
        if index == 0 and "/" in word:
            return None  # a program of its own that nothing makes: what follows are its arguments
    return None


def _trace(stage: Stage, path: str, context: Path, depth: int) -> _Built | None:
    """The step that makes this path of the stage, looked for from the last one up."""
    if depth > 20:
        return None
    for position in range(len(stage.steps) - 1, -1, -1):
        step = stage.steps[position]
        if isinstance(step, Copy):
            source = _source_of(step, path)
            if source is None:
                continue
            if step.foreign:
                return None
            if step.stage is not None:
                return _trace(step.stage, posixpath.normpath(posixpath.join("/", source)), context, depth + 1)
            if _is_there(context, source):
                home = code_folder(stage, stage.workdir, context)
                return _Built("", posixpath.relpath(source.lstrip("/"), home), home)
            if (built := _by_usual_tool(source, context)) is not None:
                return built
        elif (built := _by_run(stage, position, step, path, context)) is not None:
            return built
    return None


def _source_of(step: Copy, path: str) -> str | None:
    """Where the path comes from if this step copied it."""
    target = posixpath.normpath(step.target)
    for source in step.sources:
        if path == target and not step.target.endswith("/"):
            return source
        if path == target or not path.startswith(target.rstrip("/") + "/"):
            continue
        rest = path[len(target.rstrip("/")) + 1 :]
        name = posixpath.basename(source.rstrip("/"))
        if rest == name or fnmatch.fnmatch(rest, name):
            return source  # a file that went into the folder
        # A folder's content goes into the target.
        if not posixpath.splitext(name)[1] or source.endswith("/"):
            return posixpath.join(source, rest)
    return None


def _is_there(context: Path, source: str) -> bool:
    source = source.lstrip("/")
    try:
        if any(char in source for char in "*?["):
            return any(True for _ in context.glob(source))
        return (context / source).exists()
    except (OSError, ValueError, NotImplementedError):
        return False


def _by_run(stage: Stage, position: int, step: Run, path: str, context: Path) -> _Built | None:
    folder = step.folder
    for line in _commands(step.commands):
        words = line.split()
        if words[:1] == ["cd"] and len(words) == 2:
            folder = posixpath.normpath(posixpath.join(folder, words[1]))
            continue
        if not _COMPILERS.match(line):
            continue
        if (built := _by_command(stage, position, line, folder, path, context)) is not None:
            return built
    return None


def _by_command(stage: Stage, position: int, line: str, folder: str, path: str, context: Path) -> _Built | None:
    home = _code_at(stage, position, folder, context)
    line = _CROSS.sub("", line)
    name = posixpath.basename(path)
    output = _OUTPUT_FLAG.search(line)
    if output is not None:
        out = posixpath.normpath(posixpath.join(folder, output.group(3).strip("\"'")))
        inside = path.startswith(out.rstrip("/") + "/")
        if path != out and not inside:
            return None
        rest = path[len(out.rstrip("/")) + 1 :] if inside else ""
        if out.startswith(folder.rstrip("/") + "/") and folder != "/":
            local = posixpath.relpath(out, folder)
        else:
            local = f"{_OUT}/{posixpath.basename(out) or name}"
        slash = "/" if inside and output.group(3).strip("\"'").endswith("/") else ""
        line = f"{line[: output.start(3)]}{local}{slash}{line[output.end(3) :]}"
        return _Built(line, posixpath.join(local, rest) if rest else local, home)
    if re.search(r"\bgo\s+install\b|\bcargo\s+install\b", line):
        if posixpath.dirname(path) not in _PATH:
            return None
        if "cargo" in line:
            return _Built("cargo build --release", f"target/release/{name}", home)
        package = next((word for word in reversed(line.split()) if word.startswith((".", "/"))), ".")
        return _Built(f"go build -o {_OUT}/{name} {package}", f"{_OUT}/{name}", home)
    inside = path.startswith(folder.rstrip("/") + "/")
    if not inside:
        return None
    local = posixpath.relpath(path, folder)
    if re.search(r"\bgo\s+build\b", line):
        return _Built(line, local, home) if "/" not in local else None
    if not _BUILT_FOLDERS.search(local) and not re.search(
        r"\b(?:make|ninja|gcc|g\+\+|cc|clang|rustc|crystal|nim|zig)\b", line
    ):
        return None
    if local.startswith(("lib/", "bin/")) and _is_there(context, posixpath.join(home, local)):
        return None  # a folder of the code's, in these projects
    return _Built(line, local, home)


def _by_usual_tool(source: str, context: Path) -> _Built | None:
    """A jar that is copied from the context, so that something outside of the Dockerfile makes it."""
    path = posixpath.normpath(source.lstrip("/"))
    gradle = ("gradlew", "gradle", "assemble")
    kinds = (
        ("target/", "pom.xml", "mvnw", "mvn", "package -DskipTests"),
        ("build/libs/", "build.gradle", *gradle),
        ("build/libs/", "build.gradle.kts", *gradle),
    )
    for folder, file, wrapper, program, goal in kinds:
        home, found, _ = path.partition(folder)
        if found and path.endswith((".jar", ".war")) and _is_there(context, posixpath.join(home, file)):
            runner = f"./{wrapper}" if _is_there(context, posixpath.join(home, wrapper)) else program
            return _Built(f"{runner} {goal}", path.removeprefix(home), posixpath.normpath(home or "."))
    return None


def code_folder(stage: Stage, workdir: str, context: Path) -> str:
    """The folder of the context whose files are in this folder of the image, relative to the context."""
    return _code_at(stage, len(stage.steps), workdir, context)


def _code_at(stage: Stage, position: int, folder: str, context: Path, depth: int = 0) -> str:
    """The folder of the context that stands at this folder of the image, relative to the context."""
    for step in reversed(stage.steps[:position]):
        if not isinstance(step, Copy) or step.foreign:
            continue
        target = posixpath.normpath(step.target)
        for source in step.sources:
            inside = folder == target or folder.startswith(target.rstrip("/") + "/")
            if step.stage is not None:
                other = posixpath.normpath(posixpath.join("/", source, posixpath.relpath(folder, target)))
                if inside and depth < 20:
                    found = _code_at(step.stage, len(step.stage.steps), other, context, depth + 1)
                    if found != ".":
                        return found
                continue
            local = posixpath.normpath(posixpath.join(source.lstrip("/") or ".", posixpath.relpath(folder, target)))
            if inside and not local.startswith("..") and _is_folder(context, source) and _is_folder(context, local):
                return local
    return "."


def _is_folder(context: Path, source: str) -> bool:
    try:
        return (context / source.lstrip("/")).is_dir()
    except (OSError, ValueError):
        return False


def _commands(text: str) -> list[str]:
    """The simple commands of a RUN, in their order."""
    parts = re.split(r"&&|\|\||;|\n", text)
    return [" ".join(part.split()) for part in parts if part.strip()]
