"""A local server that speaks as much of W&B's protocol as a run needs, and remembers what it was sent."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PROJECT = {"name": "project", "entity": {"name": "me"}}


class StubServer:
    """Remembers ``calls`` [(operation, variables)], ``history`` rows, ``summary``, ``exit_code``, ``uploads``
    (path -> bytes) and all ``bodies``; ``known`` is what it says of a run that it is asked to resume."""

    def __init__(self):
        self.calls, self.history, self.uploads, self.bodies = [], [], {}, []
        self.summary, self.exit_code, self.known = {}, None, None
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def variables(self, operation):
        """Variables of each call of an operation."""
        return [variables for name, variables in self.calls if name == operation]

    def end_session(self):
        """From now on the run exists, with the history that was sent."""
        last = json.dumps({"_step": max(row["_step"] for row in self.history)})
        self.known = {
            "id": "bucket",
            "name": self.variables("UpsertBucket")[0]["name"],
            "displayName": "name",
            "summaryMetrics": "{}",
            "config": "{}",
            "tags": [],
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
            "historyLineCount": len(self.history),
            "historyTail": json.dumps([last]),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "eventsTail": "[]",
        }

    def answer(self, operation, variables):
        """Data of a GraphQL reply."""
        self.calls.append((operation, variables))
        return _ANSWERS[operation](self, variables)

    def take_stream(self, files):
        """Rows and summary of a run's file stream."""
        self.history += [json.loads(row) for row in files.get("wandb-history.jsonl", {}).get("content", [])]
        for text in files.get("wandb-summary.json", {}).get("content", []):
            self.summary = json.loads(text)


class _Handler(BaseHTTPRequestHandler):
    stub = None
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._reply(self.stub.uploads[self.path])

    def do_PUT(self):
        self.stub.uploads[self.path] = self._body()
        self._reply(b"{}")

    def do_POST(self):
        request = json.loads(self._body())
        if self.path != "/graphql":
            self.stub.take_stream(request.get("files") or {})
            if request.get("complete"):
                self.stub.exit_code = request["exitcode"]
            self._reply(b'{"limits": {}}')
            return
        found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        data = self.stub.answer(found and found.group(1), request.get("variables") or {})
        self._reply(json.dumps({"data": data}).encode())

    def _body(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.stub.bodies.append(body)
        return body

    def _reply(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _upsert(stub, variables):
    bucket = {
        "id": "bucket",
        "name": variables["name"],
        "displayName": variables.get("displayName"),
        "description": None,
        "config": "{}",
        "sweepName": None,
        "historyLineCount": len(stub.history),
        "project": {"id": "project", "name": "project", "entity": {"id": "entity", "name": "me"}},
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": stub.known is None}}


def _run_files(stub, variables):
    files = [{"name": name, "uploadUrl": f"{stub.url}/files/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": "bucket", "uploadHeaders": [], "files": files}}


def _artifact(stub, variables):
    artifact = {
        "id": variables["input"]["digest"],
        "state": "PENDING",
        "artifactSequence": {"latestArtifact": None},
    }
    return {"createArtifact": {"artifact": artifact}}


def _manifest(stub, variables):
    name = f"manifests/{variables['artifactID']}"
    file = {
        "id": "f",
        "name": name,
        "displayName": name,
        "uploadUrl": f"{stub.url}/{name}",
        "uploadHeaders": [],
    }
    return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}


def _artifact_files(stub, variables):
    nodes = [
        {
            "id": file["name"],
            "name": file["name"],
            "displayName": file["name"],
            "uploadUrl": f"{stub.url}/artifacts/{file['artifactID']}/{file['name']}",
            "uploadHeaders": [],
            "storagePath": "path",
            "uploadMultipartUrls": None,
            "artifact": {"id": file["artifactID"]},
        }
        for file in variables["artifactFiles"]
    ]
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


def _artifact_by_id(stub, variables):
    sequence = {"__typename": "ArtifactSequence", "name": "sequence", "project": _PROJECT}
    return {
        "artifact": {
            "__typename": "Artifact",
            "id": variables["id"],
            "artifactSequence": sequence,
            "versionIndex": 0,
            "artifactType": {"name": "run_table"},
            "description": None,
            "metadata": None,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": 0,
            "state": "COMMITTED",
            "size": 1,
            "digest": variables["id"],
            "commitHash": "commit",
            "fileCount": 1,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [],
        }
    }


def _fetch_manifest(stub, variables):
    file = {"__typename": "File", "id": "f", "directUrl": f"{stub.url}/manifests/{variables['id']}"}
    return {"artifact": {"currentManifest": {"__typename": "ArtifactManifest", "id": "m", "file": file}}}


def _viewer(stub, variables):
    nothing = {"edges": []}
    user = {"id": "me", "name": "me", "username": "me", "email": None, "admin": False, "flags": "{}"}
    return {"viewer": {**user, "entity": "me", "deletedAt": None, "apiKeys": nothing, "teams": nothing}}


def _resume_status(stub, variables):
    entity = {"id": "entity", "name": "me"}
    return {"model": {"id": "project", "name": "project", "entity": entity, "bucket": stub.known}}


_ANSWERS = {
    None: _viewer,
    "Viewer": _viewer,
    "GetViewer": _viewer,
    "ServerFeaturesQuery": lambda *_: {"serverInfo": {"features": []}},
    "ProbeServerCapabilities": lambda *_: {
        "QueryType": {"fields": []},
        "MutationType": {"fields": []},
        "ServerInfoType": {"fields": []},
    },
    "RunResumeStatus": _resume_status,
    "UpsertBucket": _upsert,
    "CreateRunFiles": _run_files,
    "ArtifactType": lambda *_: {"project": {"artifact": None}},
    "InputFields": lambda *_: {
        "TypeInfo": {"inputFields": [{"name": "clientID"}, {"name": "sequenceClientID"}]}
    },
    "CreateArtifact": _artifact,
    "CreateArtifactManifest": _manifest,
    "CreateArtifactFiles": _artifact_files,
    "CommitArtifact": lambda *_: {"commitArtifact": {"artifact": {"id": "a", "digest": "d"}}},
    "ArtifactByID": _artifact_by_id,
    "FetchArtifactManifest": _fetch_manifest,
    "UpsertView2": lambda *_: {"upsertView": {"view": {"id": "v", "name": "view1"}, "inserted": True}},
}
