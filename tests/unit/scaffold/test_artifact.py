# ruff: noqa: E501 - a table
"""What an image's build makes and its CMD names is built here."""

from __future__ import annotations

import pytest

from .conftest import Generate

GO = "FROM golang:1.22 AS builder\nWORKDIR /code\nCOPY . .\n"
NODE = "FROM node:22 AS build\nWORKDIR /app\nCOPY package*.json ./\nRUN npm ci\nCOPY . .\n"


@pytest.mark.parametrize(
    ("dockerfile", "build", "command"),
    [
        (GO + 'RUN go build -o bin/backend .\nCMD ["/code/bin/backend"]', "go build -o bin/backend .", "bin/backend"),
        (
            GO + 'RUN CGO_ENABLED=0 GOOS=linux go build -ldflags="-s -w" -o /out/server ./cmd/server\n'
            'FROM scratch\nCOPY --from=builder /out/server /server\nENTRYPOINT ["/server", "--port", "80"]',
            'CGO_ENABLED=0 go build -ldflags="-s -w" -o tmp/server ./cmd/server',
            "tmp/server --port 80",
        ),
        (
            GO + "RUN --mount=type=cache,target=/root/.cache \\\n  # why\n  go build \\\n    -o=/app .\n"
            'FROM alpine\nWORKDIR /\nCOPY --from=builder /app /app\nCMD ["/app"]',
            "go build -o=tmp/app .",
            "tmp/app",
        ),
        (GO + 'ARG NAME=api\nENV OUT=/bin/$NAME\nRUN go build -o ${OUT} .\nCMD ["/bin/api"]', "go build -o tmp/api .", "tmp/api"),
        (GO + 'RUN go install ./cmd/web\nCMD ["/go/bin/web"]', "go build -o tmp/web ./cmd/web", "tmp/web"),
        (GO + "RUN <<EOF\nset -e\ngo mod download\ngo build -o bin/x .\nEOF\nCMD /code/bin/x -v", "go build -o bin/x .", "bin/x -v"),
        ("# escape=`\n" + GO + 'RUN go build `\n -o bin/x .\nCMD ["./bin/x"]', "go build -o bin/x .", "bin/x"),
        (
            NODE + "RUN npm run build && npm prune\nFROM node:22-slim\nWORKDIR /srv\n"
            'COPY --from=build /app/dist ./dist\nCOPY --from=build /app/node_modules ./node_modules\nCMD ["node", "dist/main.js"]',
            "npm run build",
            "node dist/main.js",
        ),
        (NODE + "RUN npx tsc -p .\nCMD node --enable-source-maps build/index.js", "npx tsc -p .", "node --enable-source-maps build/index.js"),
        (NODE + 'RUN yarn build\nCMD ["node", "/app/dist/x.js"]', "yarn build", "node dist/x.js"),
        (
            "FROM maven AS m\nWORKDIR /src\nCOPY . .\nRUN mvn -B package -DskipTests\n"
            'FROM eclipse-temurin:21\nCOPY --from=m /src/target/*.jar /app.jar\nENTRYPOINT ["java", "-jar", "/app.jar"]',
            "mvn -B package -DskipTests",
            "java -jar target/*.jar",
        ),
        (
            "FROM gradle AS g\nCOPY . /home/app\nWORKDIR /home/app\nRUN ./gradlew bootJar --no-daemon\n"
            'FROM temurin\nCOPY --from=0 /home/app/build/libs/shop.jar shop.jar\nCMD ["java", "-Xmx1g", "-jar", "shop.jar"]',
            "./gradlew bootJar --no-daemon",
            "java -Xmx1g -jar build/libs/shop.jar",
        ),
        (
            "FROM rust AS r\nWORKDIR /usr/src/app\nCOPY . .\nRUN cargo build --release\n"
            "FROM debian\nCOPY --from=r /usr/src/app/target/release/shop /usr/local/bin/shop\nCMD [\"/usr/local/bin/shop\"]",
            "cargo build --release",
            "target/release/shop",
        ),
        (
            "FROM rust AS r\nWORKDIR /a\nCOPY . .\nRUN cargo install --path .\n"
            'FROM debian\nCOPY --from=r /usr/local/cargo/bin/shop /usr/bin/\nCMD ["/usr/bin/shop"]',
            "cargo build --release",
            "target/release/shop",
        ),
        (
            "FROM sdk AS b\nWORKDIR /src\nCOPY . .\nRUN dotnet publish -c Release -o /app/publish\n"
            'FROM aspnet\nWORKDIR /app\nCOPY --from=b /app/publish .\nENTRYPOINT ["dotnet", "Shop.dll"]',
            "dotnet publish -c Release -o tmp/publish",
            "dotnet tmp/publish/Shop.dll",
        ),
        ("FROM gcc\nWORKDIR /s\nCOPY . .\nRUN make server\nCMD ./server", "make server", "./server"),
        ("FROM gcc\nWORKDIR /s\nCOPY . .\nRUN gcc -O2 -o serve main.c\nCMD [\"./serve\"]", "gcc -O2 -o serve main.c", "./serve"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("context", [".", "backend"])
def test_what_the_command_names_is_built_first(
    made: Generate, dockerfile: str, build: str, command: str, context: str
) -> None:
    services = made({"compose.yaml": f"services: {{a: {{build: {context}}}}}", f"{context}/Dockerfile": dockerfile})
    assert services["a"]["build"] == build
    assert services["a"]["command"] == command
    assert services["a"].get("cwd", ".") == context


def test_it_is_built_where_its_code_is(made: Generate) -> None:
    dockerfile = (
        "FROM golang AS b\nWORKDIR /go/src/app\nCOPY server/ .\nRUN go build -o /bin/srv .\n"
        'FROM alpine\nCOPY --from=b /bin/srv /srv\nCMD ["/srv"]'
    )
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, "server/main.go": ""})
    assert services["a"]["cwd"] == "server"
    assert services["a"]["build"] == "go build -o tmp/srv ."


def test_a_file_that_is_in_the_code_is_not_built(made: Generate) -> None:
    for file in ("src/main.js", "lib/main.js", "main.js"):
        # Each is there when the next is looked for, and none is built.
        dockerfile = NODE + f'RUN npm run build\nCMD ["node", "{file}"]'
        services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, file: ""})
        assert services["a"] == {"command": f"node {file}"}


def test_what_an_earlier_build_left_is_built_again(made: Generate) -> None:
    dockerfile = NODE + 'RUN npm run build\nCMD ["node", "dist/main.js"]'
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, "dist/main.js": ""})
    assert services["a"]["build"] == "npm run build"


def test_a_program_on_the_images_path_is_found(made: Generate) -> None:
    dockerfile = GO + 'RUN go build -o /usr/local/bin/shop .\nCMD ["shop", "serve"]'
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile})
    assert services["a"] == {"build": "go build -o tmp/shop .", "command": "tmp/shop serve"}


def test_a_program_that_nothing_makes_is_said(made: Generate) -> None:
    dockerfile = 'FROM base\nWORKDIR /x\nCOPY . .\nCMD ["./bin/server"]'
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile})
    assert "./bin/server is not here: the image's build makes it." in services["text"]


def test_build_arguments_targets_and_inline_dockerfiles(made: Generate) -> None:
    text = """
services:
  a:
    build:
      context: .
      target: dev
      args: {PROGRAM: alpha}
      dockerfile_inline: |
        FROM golang AS dev
        ARG PROGRAM=beta
        ENV PORT=8123 MODE="x y" PATH=/a:/b
        WORKDIR /c
        COPY . .
        EXPOSE $$PORT
        RUN go build -o bin/$$PROGRAM .
        CMD ["bin/alpha"]
        FROM scratch
        CMD ["wrong"]
"""
    services = made({"compose.yaml": text})
    assert services["a"]["build"] == "go build -o bin/alpha ."
    assert services["a"]["command"] == "bin/alpha"
    assert services["a"]["env"] == {"PORT": "8123", "MODE": "x y"}
    assert services["a"]["ports"] == {"http": 8123}


def test_code_that_has_another_path_in_the_image(made: Generate) -> None:
    files = {"api/main.py": "", "api/sub/x.py": "", "web/src/server.js": ""}
    dockerfile = 'FROM python\nWORKDIR /srv\nCOPY api/ /srv/\nCMD ["python", "main.py"]'
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, **files})
    assert services["a"] == {"command": "python main.py", "cwd": "api"}
    dockerfile = "FROM python\nCOPY api /srv\nWORKDIR /srv\nCMD uvicorn main:app"
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, **files})
    assert services["a"] == {"command": "uvicorn main:app", "cwd": "api"}
    dockerfile = 'FROM node\nWORKDIR /x\nCOPY web/src/server.js ./app.js\nCMD ["node", "app.js"]'
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, **files})
    assert services["a"] == {"command": "node web/src/server.js"}
    stages = "FROM python AS b\nCOPY api /b\nFROM python\nCOPY --from=b /b /srv\nWORKDIR /srv\nCMD python -m main"
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": stages, **files})
    assert services["a"] == {"command": "python -m main", "cwd": "api"}


@pytest.mark.parametrize(
    ("files", "source", "build", "command"),
    [
        ({"pom.xml": "", "mvnw": ""}, "target/*.jar", "./mvnw package -DskipTests", "java -jar target/*.jar"),
        ({"build.gradle.kts": ""}, "build/libs/x.jar", "gradle assemble", "java -jar build/libs/x.jar"),
    ],
)
def test_a_jar_that_is_made_outside_of_the_image(
    made: Generate, files: dict[str, str], source: str, build: str, command: str
) -> None:
    dockerfile = f'FROM temurin\nARG JAR={source}\nCOPY ${{JAR}} app.jar\nENTRYPOINT ["java", "-jar", "/app.jar"]'
    services = made({"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, **files})
    assert services["a"] == {"build": build, "command": command}


def test_a_script_that_starts_what_a_build_script_makes(made: Generate) -> None:
    package = '{"scripts": {"build": "tsc", "start": "node dist/main.js", "dev": "tsx watch src"}}'
    for command, build in (("npm start", "npm run build"), ("yarn run start", "yarn run build"), ("npm run dev", None)):
        dockerfile = NODE + f"RUN npm run build\nCMD {command}"
        services = made(
            {"compose.yaml": "services: {a: {build: .}}", "Dockerfile": dockerfile, "package.json": package}
        )
        assert services["a"].get("build") == build
