"""Kubeconfig as kubectl reads it.

`kubernetes.aio` turns one user and one cluster into a client's settings (certificates, tokens, basic and OIDC
authentication, `proxy-url`, `tls-server-name`), and that part is used. What it does otherwise than kubectl is done
here, after client-go's `tools/clientcmd` and `plugin/pkg/client/auth/exec`:

- Of several files in KUBECONFIG the *first* says `current-context`, as it does every other value (its loader takes
  the last); a file that is not there is no error; relative paths are relative to the file they stand in.
- An exec plugin that fails is an error with what it printed and its `installHint`, and not an anonymous request.
  `provideClusterInfo`, `interactiveMode`, `env: null` and the answer's expiry are honoured.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import errno
import json
import os
import shutil
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from devloop.paths import SMALL, read_file
from devloop.paths import kind as kind_of
from devloop.remote.link import PermanentError

EXEC_SECONDS = 60.0
# A token is fetched anew this long before it expires, so that a request does not meet its end.
EXPIRY_MARGIN_SECONDS = 30.0
TOKEN_FILE_SECONDS = 60.0
"""A `tokenFile` is read anew after this (client-go's cachingTokenSource: one minute)."""

_PATHS = {
    "clusters": ("cluster", ("certificate-authority",)),
    "users": ("user", ("client-certificate", "client-key", "tokenFile")),
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """One context of a kubeconfig, with every path absolute."""

    context: str
    namespace: str
    cluster: Mapping[str, Any]
    user: Mapping[str, Any]
    folder: Path
    """Where the user's entry was read: an exec plugin with a relative path lies beside it."""


@dataclass(slots=True)
class Credentials:
    """What an exec plugin has given, and until when (seconds since the epoch; None: until refused)."""

    user: dict[str, Any] = field(repr=False)
    expires: float | None = None

    def fresh(self, now: float) -> bool:
        """Still good for a request that starts now."""
        return self.expires is None or now < self.expires - EXPIRY_MARGIN_SECONDS


LARGEST = 64 << 20
"""Bytes of a kubeconfig, with the certificates of thousands of clusters."""
MOST_VALUES, DEEPEST = 1_000_000, 100
"""In a kubeconfig, each as often as it is named; and in each other."""


def files(explicit: Path | None = None, environ: Mapping[str, str] | None = None) -> list[Path]:
    """The files to read: the one named, else those in KUBECONFIG, else ~/.kube/config."""
    if explicit is not None:
        return [explicit.expanduser()]
    named = (os.environ if environ is None else environ).get("KUBECONFIG", "")
    found = [Path(each).expanduser() for each in named.split(os.pathsep) if each]
    return found or [Path("~/.kube/config").expanduser()]


def _content(path: Path) -> str:
    """The user's own may be a pipe (`KUBECONFIG=<(…)`). Raises OSError."""
    with path.open("rb") as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST >> 20} MiB")
    return found.decode()


def _is_small(content: object) -> bool:
    """Whether it stays small written out: aliases of YAML are one object, and a few lines of them billions of words.

    What holds itself is counted once: it is told apart where it is written out.
    """
    left = MOST_VALUES

    def counted(value: object, above: tuple[int, ...]) -> bool:
        nonlocal left
        left -= 1
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if left < 0 or len(above) > DEEPEST:
            return False
        return id(value) in above or all(counted(each, (*above, id(value))) for each in inner)

    return counted(content, ())


def choose(paths: list[Path], context: str | None = None, namespace: str | None = None) -> Chosen:
    """Merge these files and take one context of them; PermanentError names what is missing and where."""
    import yaml

    merged: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {"clusters": {}, "users": {}, "contexts": {}}
    current = ""
    where = os.pathsep.join(map(str, paths))
    read = 0
    for path in paths:
        try:
            content = yaml.safe_load(_content(path)) or {}
        except FileNotFoundError:
            continue
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as problem:
            raise PermanentError(f"it can't be read: {problem}", where=str(path)) from problem
        read += 1
        if not isinstance(content, dict) or not _is_small(content):
            raise PermanentError("it is no kubeconfig", where=str(path))
        current = current or content.get("current-context") or ""
        for kind, name, entry in _entries(content, path):
            merged[kind].setdefault(name, (entry, path.parent))
    if not read:
        raise PermanentError(
            "there is no kubeconfig", where=where, hint="Set KUBECONFIG, or give `[remote] kubeconfig`."
        )
    wanted = context or current
    if not wanted:
        raise PermanentError("no current-context is set", where=where, hint="Give `[remote] context`.")
    if wanted not in merged["contexts"]:
        known = ", ".join(sorted(merged["contexts"])) or "none"
        raise PermanentError(f'there is no context "{wanted}"', where=where, hint=f"There are: {known}.")
    entry, _ = merged["contexts"][wanted]
    cluster_name, user_name = entry.get("cluster") or "", entry.get("user") or ""
    if cluster_name not in merged["clusters"]:
        raise PermanentError(f'context "{wanted}" names the cluster "{cluster_name}"', where=where)
    if user_name and user_name not in merged["users"]:
        raise PermanentError(f'context "{wanted}" names the user "{user_name}"', where=where)
    cluster, _ = merged["clusters"][cluster_name]
    user, folder = merged["users"].get(user_name, ({}, paths[0].parent))
    for key in _PATHS["clusters"][1] + _PATHS["users"][1]:
        file = str(cluster.get(key) or user.get(key) or "")
        if (what := kind_of(Path(file)) if file else "") not in ("", "a file"):  # OpenSSL would wait for a pipe's end
            raise PermanentError(f"{key}: {file} is {what}, and no file", where=where)
    return Chosen(wanted, namespace or entry.get("namespace") or "default", cluster, user, folder)


def _entries(content: dict[str, Any], path: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The named clusters, users and contexts of one file, their paths made absolute."""
    for kind, part in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
        for each in content.get(kind) or []:
            if not isinstance(each, dict) or "name" not in each:
                raise PermanentError(f"an entry of `{kind}` has no name", where=str(path))
            entry = dict(each.get(part) or {})
            for key in _PATHS.get(kind, ("", ()))[1]:
                if value := entry.get(key):
                    entry[key] = str((path.parent / Path(value).expanduser()).absolute())
            yield kind, str(each["name"]), entry


async def run_plugin(chosen: Chosen) -> Credentials:
    """Run the user's exec plugin (client.authentication.k8s.io) and read its ExecCredential."""
    spec = chosen.user["exec"]
    command = str(spec.get("command") or "")
    where = f'exec plugin "{command}" of context "{chosen.context}"'
    version = str(spec.get("apiVersion") or "")
    if not command or not version:
        raise PermanentError("`command` and `apiVersion` are needed", where=where)
    if spec.get("interactiveMode") == "Always":
        raise PermanentError(
            "it asks questions on a terminal, which devloop has none of",
            where=where,
            hint="Log in with kubectl once, or use `interactiveMode: IfAvailable`.",
        )
    # As client-go: a name is looked up in PATH, a relative path lies beside the kubeconfig.
    program = str(chosen.folder / command) if os.sep in command and not command.startswith(os.sep) else command
    if shutil.which(program) is None:
        raise PermanentError("it is not installed", where=where, hint=spec.get("installHint"))
    info: dict[str, Any] = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}}
    if spec.get("provideClusterInfo"):
        info["spec"]["cluster"] = await asyncio.to_thread(_cluster_info, chosen.cluster)
    environ = {**os.environ, **{each["name"]: each["value"] for each in spec.get("env") or []}}
    environ["KUBERNETES_EXEC_INFO"] = json.dumps(info)
    process = await asyncio.create_subprocess_exec(
        program,
        *map(str, spec.get("args") or []),
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(EXEC_SECONDS):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        raise PermanentError(f"it did not end within {EXEC_SECONDS:g} s", where=where) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = stderr.decode(errors="replace").strip()[-1000:] or "it printed nothing on stderr"
        raise PermanentError(f"it ended with code {process.returncode}: {said}", where=where)
    return _credential(stdout, version, where)


def _cluster_info(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """ExecCredential's `spec.cluster`."""
    info = {key: cluster[key] for key in ("server", "tls-server-name", "proxy-url") if key in cluster}
    if cluster.get("insecure-skip-tls-verify"):
        info["insecure-skip-tls-verify"] = True
    data = cluster.get("certificate-authority-data")
    if not data and (file := cluster.get("certificate-authority")):
        data = base64.b64encode(read_file(Path(file), SMALL)).decode()
    if data:
        info["certificate-authority-data"] = data
    for extension in cluster.get("extensions") or []:
        if extension.get("name") == "client.authentication.k8s.io/exec":
            info["config"] = extension.get("extension")
    return info


def _credential(stdout: bytes, version: str, where: str) -> Credentials:
    """Read the plugin's answer. What it printed is not quoted in an error: it may hold a token."""
    try:
        answer = json.loads(stdout)
        status = answer["status"]
        if answer["kind"] != "ExecCredential" or answer["apiVersion"] != version:
            raise ValueError
        user: dict[str, Any] = {}
        if status.get("token"):
            user["token"] = status["token"]
        if status.get("clientCertificateData"):
            for source, target in (
                ("clientCertificateData", "client-certificate-data"),
                ("clientKeyData", "client-key-data"),
            ):
                user[target] = base64.b64encode(status[source].encode()).decode()
        if not user:
            raise ValueError
        until = status.get("expirationTimestamp")
        expires = datetime.fromisoformat(until).timestamp() if until else None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PermanentError(
            f"it did not print an ExecCredential of {version} with a token or a certificate", where=where
        ) from None
    return Credentials(user, expires)


class Kubeconfig:
    """One context, ready for use; `configuration` is asked again whenever credentials may have changed."""

    def __init__(
        self,
        explicit: Path | None = None,
        context: str | None = None,
        namespace: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.paths = files(explicit, environ)
        self.chosen = choose(self.paths, context, namespace)
        self._plugin: Credentials | None = None
        self._read = 0.0

    @property
    def where(self) -> str:
        """For messages: the context and the namespace."""
        return f"{self.chosen.context}/{self.chosen.namespace}"

    def stale(self) -> bool:
        """What authenticates a request has to be fetched anew."""
        if self._plugin is not None:
            return not self._plugin.fresh(time.time())
        return "tokenFile" in self.chosen.user and time.monotonic() - self._read > TOKEN_FILE_SECONDS

    def forget(self) -> None:
        """The API server has refused what the plugin gave: it is asked again."""
        self._plugin = None

    async def configuration(self) -> Any:
        """Settings for `kubernetes.aio.client.ApiClient`. Raises PermanentError."""
        from kubernetes.aio import client, config

        chosen = self.chosen
        proxy = str(chosen.cluster.get("proxy-url") or "")
        if proxy and not proxy.startswith(("http://", "https://")):
            raise PermanentError(
                f"proxy-url {proxy.split(':', 1)[0]}:// is not supported",
                where=f'context "{chosen.context}"',
                hint="HTTP proxies are. For SOCKS, run a local HTTP proxy, or use HTTPS_PROXY.",
            )
        user = dict(chosen.user)
        if "exec" in user:
            if self._plugin is None or not self._plugin.fresh(time.time()):
                self._plugin = await run_plugin(chosen)
            # Certificates beside `exec` stay in force, as in client-go.
            user = {**{k: v for k, v in user.items() if k != "exec"}, **self._plugin.user}
        name = "chosen"
        cluster, user = _without_files(chosen.cluster), _without_files(user)
        content = {
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        }
        settings: Any = client.Configuration()
        try:
            load: Any = config.load_kube_config_from_dict
            await load(content, client_configuration=settings)
        except (config.ConfigException, ValueError, OSError, KeyError) as problem:
            raise PermanentError(str(problem), where=f'context "{chosen.context}"') from None
        await asyncio.to_thread(_check_tls, settings, f'context "{chosen.context}"')
        self._read = time.monotonic()
        # One connection for each port-forward; aiohttp's limit of 100 would let the next one wait for ever.
        settings.connection_pool_maxsize = 0
        return settings


class Lasting:
    """One context's settings for who keeps them for longer than a token or a certificate is good."""

    def __init__(self, kubeconfig: Kubeconfig, settings: Any) -> None:
        """`settings` are what it has given; they are changed in place."""
        self._kubeconfig = copy.copy(kubeconfig)  # what others fetch anew is not known to be new here
        self._settings = settings
        self._refused = False
        self._loading = asyncio.Lock()

    async def fresh(self) -> None:
        """What authenticates a request is good now. Raises PermanentError."""
        async with self._loading:
            if self._refused or self._kubeconfig.stale():
                now = await self._kubeconfig.configuration()
                self._refused = False
                for each in ("api_key", "cert_file", "key_file"):
                    setattr(self._settings, each, getattr(now, each))

    def refused(self) -> bool:
        """The API server takes these no more (401). Whether others can be had."""
        if not {"exec", "tokenFile"} & self._kubeconfig.chosen.user.keys():
            return False
        self._kubeconfig.forget()
        self._refused = True
        return True


_EMBEDDED = ("certificate-authority", "client-certificate", "client-key")
_in_memory: dict[str, str] = {}


def _without_files(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same with keys and certificates in this process's memory, where they stand in the kubeconfig itself.

    Python's TLS takes paths alone, so the client would write them to the temporary folder, where a key outlives a
    process that is killed. What isn't base64 stays, for the client to complain about.
    """
    found = dict(entry)
    if not hasattr(os, "memfd_create"):
        return found
    for key in _EMBEDDED:
        data = found.get(f"{key}-data")
        if not isinstance(data, str) or not data:
            continue
        if data not in _in_memory:
            try:
                content = base64.b64decode(data)
            except ValueError:
                continue
            descriptor = os.memfd_create(key)  # open as long as the process lives: any later connection may read it
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(content)
            _in_memory[data] = f"/proc/self/fd/{descriptor}"
        del found[f"{key}-data"]
        found[key] = _in_memory[data]
    return found


def _check_tls(settings: Any, where: str) -> None:
    """The certificates can be loaded: else the client fails with OpenSSL's words alone. Raises PermanentError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    what = ""
    try:
        if settings.ssl_ca_cert:
            what = "certificate-authority"
            context.load_verify_locations(cafile=settings.ssl_ca_cert)
        if settings.cert_file:
            what = "client-certificate and client-key"
            context.load_cert_chain(settings.cert_file, keyfile=settings.key_file)
    except (OSError, ValueError) as problem:  # SSLError is an OSError
        hint = "Are they whole, and do they belong together?" if "key" in what else "Is it a certificate in PEM?"
        raise PermanentError(f"{what} can't be used: {problem}", where=where, hint=hint) from None
