"""A stand-in for Google's and Azure's object stores: as much of their HTTP as a checkpoint needs.

No server of theirs can be installed here. What it holds to is what their documents say of the
requests: a condition on a write, ranges, lists, the codes of refusals. It checks no signature.
"""

from __future__ import annotations

import itertools
import re
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

STAMP = "2026-01-02T03:04:05.000Z"


class Cloud:
    """Objects by path, over both dialects.

    `seen`: headers that made a write conditional. `refuse`: answer reads with 403 and the key.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.writings: dict[str, int] = {}
        self.seen: set[str] = set()
        self.refuse = False
        cloud, lock, serial = self, threading.Lock(), itertools.count(1)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                only_new = [
                    name
                    for name, value in (("x-goog-if-generation-match", "0"), ("If-None-Match", "*"))
                    if self.headers.get(name) == value
                ]
                cloud.seen.update(only_new)
                with lock:
                    taken = bool(only_new) and self.key in cloud.objects
                    changed = not only_new and not self.is_wanted()
                    if not taken and not changed:
                        cloud.objects[self.key] = (body, self.date())
                        cloud.writings[self.key] = next(serial)
                if changed:
                    self.answer(412)
                elif taken and only_new[0] == "If-None-Match":
                    self.answer(409, b"<Error><Code>BlobAlreadyExists</Code></Error>")
                else:
                    self.answer(412 if taken else 201)

            def do_GET(self) -> None:
                if cloud.refuse:
                    told = self.headers.get("Authorization") or ""
                    self.answer(403, f"<Error><Code>AccessDenied</Code>{told}</Error>".encode())
                    return
                query = parse_qs(urlsplit(self.path).query)
                if "list-type" in query or query.get("comp") == ["list"]:
                    self.answer(200, self.listing(query.get("prefix", [""])[0]))
                    return
                if self.key not in cloud.objects:
                    self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                    return
                data, _ = cloud.objects[self.key]
                wanted = self.headers.get("Range") or self.headers.get("x-ms-range")
                if wanted:
                    first, _, last = wanted.removeprefix("bytes=").partition("-")
                    start, stop = int(first), min(int(last or len(data)) + 1, len(data))
                    if start >= len(data):
                        self.answer(416)
                        return
                    place = f"bytes {start}-{stop - 1}/{len(data)}"
                    self.answer(206, data[start:stop], {"Content-Range": place})
                    return
                self.answer(200, data)

            def do_HEAD(self) -> None:
                found = cloud.objects.get(self.key)
                self.answer(404 if found is None else 200, found[0] if found else b"")

            def do_DELETE(self) -> None:
                self.answer(404 if cloud.objects.pop(self.key, None) is None else 202)

            def do_POST(self) -> None:
                """Azure deletes in batches: requests inside a request."""
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                mark, parts = "batch", []
                for number, path in enumerate(re.findall(r"DELETE (\S+) HTTP", body)):
                    gone = cloud.objects.pop(unquote(urlsplit(path).path).strip("/"), None)
                    status = "404 The specified blob does not exist." if gone is None else "202 ok"
                    parts.append(
                        f"--{mark}\r\nContent-Type: application/http\r\n"
                        f"Content-ID: {number}\r\n\r\n"
                        f"HTTP/1.1 {status}\r\n\r\n\r\n"
                    )
                whole = "".join(parts) + f"--{mark}--\r\n"
                kind = {"Content-Type": f"multipart/mixed; boundary={mark}"}
                self.answer(202, whole.encode(), kind)

            def is_wanted(self) -> bool:
                """Whether a write that names the writing it replaces finds that one."""
                now = str(cloud.writings.get(self.key, 0))
                wanted = self.headers.get("x-goog-if-generation-match") or now
                tag = self.headers.get("If-Match") or f'"{now}"'
                return wanted == now and tag == f'"{now}"'

            @property
            def key(self) -> str:
                return unquote(urlsplit(self.path).path).strip("/")

            def date(self) -> float:
                return 1_800_000_000.0 + len(cloud.objects)

            def listing(self, prefix: str) -> bytes:
                rows, google = [], "list-type" in self.path
                for path, (data, _) in sorted(cloud.objects.items()):
                    key = path.removeprefix(f"{self.key}/")
                    if not key.startswith(prefix):
                        continue
                    if google:
                        rows.append(
                            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                            f"<LastModified>{STAMP}</LastModified><ETag>e</ETag></Contents>"
                        )
                    else:
                        stamp = formatdate(0, usegmt=True)
                        rows.append(
                            f"<Blob><Name>{escape(key)}</Name><Properties>"
                            f"<Last-Modified>{stamp}</Last-Modified>"
                            f"<Content-Length>{len(data)}</Content-Length>"
                            f"<Content-Type>x/y</Content-Type><Etag>e</Etag></Properties></Blob>"
                        )
                inside = "".join(rows)
                if google:
                    return f"<ListBucketResult>{inside}</ListBucketResult>".encode()
                whole = f"<Blobs>{inside}</Blobs><NextMarker />"
                return f"<EnumerationResults>{whole}</EnumerationResults>".encode()

            def log_message(self, format: str, *args: object) -> None:
                return

            def answer(
                self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
            ) -> None:
                self.send_response_only(status)
                stamp = cloud.objects.get(self.key, (b"", 0.0))[1]
                writing = str(cloud.writings.get(self.key, 0))
                fixed = {"Last-Modified": formatdate(stamp, usegmt=True), "ETag": f'"{writing}"'}
                fixed["x-goog-generation"] = writing
                for name, value in {**fixed, **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
