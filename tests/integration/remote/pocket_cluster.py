"""An API server with pods and ConfigMaps, and the rights that the Roles give: as much of a cluster as joining needs.

It is asked by the agent's own client (`ClusterApi`) and by a developer's (`Api`), over HTTP. What stands for RBAC, the
garbage collector and immutability is the API's documented behavior, in few lines; `tests/cluster` has the real ones.
"""

from __future__ import annotations

import contextlib
import copy
import json
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from devloop.agent.presence import ClusterApi
from devloop.remote.kubernetes.api import Api
from devloop.remote.kubernetes.kept import roles
from devloop.remote.kubernetes.kubeconfig import Kubeconfig
from devloop.remote.roles import Role

Document = dict[str, Any]
NAMESPACE = "shop"
AGENT, DEVELOPER = "agent", "developer"


@cache
def rules_of(who: str) -> list[Document]:
    """What the Roles allow: the agent its own, a developer all of the others."""
    found = [each for each in yaml.safe_load_all(roles(role=Role.SELF_SERVICE)) if each["kind"] == "Role"]
    chosen = [each for each in found if each["metadata"]["name"].startswith("devloop-agent") == (who == AGENT)]
    assert chosen
    return [rule for each in chosen for rule in each["rules"]]


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """The objects, by (resource, name). `asked`: what requests there were, as (who, verb, path with query)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Document] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.ahead = timedelta()
        """How far its clock is ahead: time that passes at once."""
        self.broken = 0
        """So many of the agent's requests for one object are answered with 500."""
        self.denied: set[tuple[str, str, str]] = set()
        """(who, verb, resource) that an administrator has taken from the Roles."""
        self.lock = threading.Lock()
        self.url = ""

    # --- For tests ------------------------------------------------------------------------------------------------

    def agents_api(self) -> ClusterApi:
        """As the agent's service account."""
        made = ClusterApi.__new__(ClusterApi)
        made.account = self.folder / "account"
        made.namespace = NAMESPACE
        made.server = self.url
        made._context = ssl.create_default_context()
        return made

    def developers_api(self) -> Api:
        """As a developer."""
        return Api(Kubeconfig(self.folder / "developer.conf"))

    def put(self, resource: str, body: Document) -> Document:
        """Write one, whoever may."""
        made = copy.deepcopy(body)
        metadata = made["metadata"]
        metadata.setdefault("uid", secrets.token_hex(8))
        metadata.setdefault("creationTimestamp", self.now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.objects[resource, metadata["name"]] = made
        return made

    def names(self, resource: str) -> list[str]:
        """What there is."""
        with self.lock:
            return sorted(name for kind, name in self.objects if kind == resource)

    def now(self) -> datetime:
        """Its clock."""
        return datetime.now(UTC) + self.ahead

    @contextmanager
    def served(self, folder: Path) -> Iterator[Cluster]:
        """Listen while it lasts."""
        cluster, self.folder = self, folder

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                who = self.headers.get("Authorization", "").removeprefix("Bearer ")
                try:
                    found = cluster.answer(who, self.command, self.path, body, self.headers)
                    status, said = 200, json.dumps(found).encode()
                except RefusedError as problem:
                    status = problem.status
                    said = json.dumps({"kind": "Status", "message": str(problem)}).encode()
                self.send_response_only(status)
                self.send_header("Date", format_datetime(cluster.now(), usegmt=True))
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who asks reads no more than a bound
                    self.wfile.write(said)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        for each in ("GET", "POST", "PATCH", "PUT", "DELETE"):
            setattr(Handler, f"do_{each}", Handler.respond)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        (folder / "account").mkdir()
        (folder / "account" / "token").write_text(AGENT)
        named = {"clusters": {"server": self.url}, "users": {"token": DEVELOPER}}
        config: Document = {"current-context": "c", "kind": "Config", "apiVersion": "v1"}
        config |= {key: [{"name": "c", key[:-1]: value}] for key, value in named.items()}
        config["contexts"] = [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": NAMESPACE}}]
        (folder / "developer.conf").write_text(json.dumps(config))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    # --- The API --------------------------------------------------------------------------------------------------

    def answer(self, who: str, method: str, target: str, body: Any, headers: Any) -> Document:
        """One request's."""
        split = urlsplit(target)
        prefix = f"/api/v1/namespaces/{NAMESPACE}/"
        assert split.path.startswith(prefix), target
        resource, _, name = unquote(split.path.removeprefix(prefix)).partition("/")
        query = {key: values[0] for key, values in parse_qs(split.query).items()}
        verb = {"GET": "get" if name else "list", "PUT": "update"}.get(method, method.lower())
        verb = "create" if verb == "post" else "deletecollection" if method == "DELETE" and not name else verb
        with self.lock:
            self.asked.append((who, verb, target))
            if who == AGENT and verb == "get" and self.broken:
                self.broken -= 1
                raise RefusedError(500, "broken")
            if not self._allowed(who, verb, resource, name):
                raise RefusedError(
                    403, f'{resource} "{name}" is forbidden: User "{who}" cannot {verb} resource "{resource}"'
                )
            return self._do(verb, resource, name, query, body, headers.get("Accept", ""))

    def _allowed(self, who: str, verb: str, resource: str, name: str) -> bool:
        if (who, verb, resource) in self.denied:
            return False
        return any(
            resource in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or (name in rule["resourceNames"] and verb != "create"))
            for rule in rules_of(who)
        )

    def _do(self, verb: str, resource: str, name: str, query: Document, body: Any, accept: str) -> Document:
        if verb == "list":
            return self._list(resource, query, "as=PartialObjectMetadataList" in accept)
        if verb == "create":
            name = body["metadata"]["name"]
            if (resource, name) in self.objects:
                raise RefusedError(409, f'{resource} "{name}" already exists')
            body["metadata"].pop("creationTimestamp", None)  # the API server's own, whatever is sent
            return self.put(resource, body)
        found = self.objects.get((resource, name))
        if found is None:
            raise RefusedError(404, f'{resource} "{name}" not found')
        if verb == "get":
            return {"metadata": found["metadata"]} if "as=PartialObjectMetadata;" in accept else found
        if verb == "delete":
            wanted = ((body or {}).get("preconditions") or {}).get("uid")
            if wanted not in (None, found["metadata"]["uid"]):
                raise RefusedError(409, "the uid is another")
            if found["metadata"].get("finalizers"):
                found["metadata"]["deletionTimestamp"] = "now"
                return found
            self.remove(resource, name)
            return {}
        if found.get("immutable") and (verb == "update" or {"data", "binaryData", "immutable"} & set(body)):
            raise RefusedError(422, "field is immutable when `immutable` is set")
        _merge(found, body)
        if found["metadata"].get("deletionTimestamp") and not found["metadata"].get("finalizers"):
            self.remove(resource, name)
        return found

    def remove(self, resource: str, name: str) -> None:
        """Delete one, and as the garbage collector does, what it owns."""
        uid = self.objects.pop((resource, name))["metadata"]["uid"]
        if resource != "pods":
            return
        for kind, each in [
            key
            for key, value in self.objects.items()
            if any(owner["uid"] == uid for owner in value["metadata"].get("ownerReferences") or ())
        ]:
            self.remove(kind, each)

    def _list(self, resource: str, query: Document, partly: bool) -> Document:
        key, _, value = query.get("labelSelector", "").partition("=")
        names = [
            name
            for (kind, name), each in sorted(self.objects.items())
            if kind == resource and (not key or (each["metadata"].get("labels") or {}).get(key) == value)
        ]
        left = [name for name in names if name > query.get("continue", "")]
        chosen = left[: int(query.get("limit") or len(left) + 1)]
        found = [self.objects[resource, name] for name in chosen]
        items = [{"metadata": each["metadata"]} if partly else each for each in found]
        more = {"continue": chosen[-1]} if len(chosen) < len(left) else {}
        return {"metadata": {"resourceVersion": "1", **more}, "items": items}


def _merge(into: Document, patch: Document) -> None:
    """RFC 7396."""
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
