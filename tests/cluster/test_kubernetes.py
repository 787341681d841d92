"""The profile for Kubernetes plans a study; its bucket is an empty one on this machine, and no cluster is asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class EmptyBucket(BaseHTTPRequestHandler):
    """As much of S3 as a plan asks for: there is a bucket, and nothing in it."""

    def do_HEAD(self) -> None:
        is_bucket = self.path.strip("/").count("/") == 0
        self.send_response(200 if is_bucket else 404)
        self.end_headers()

    def do_GET(self) -> None:
        body = b"<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@pytest.fixture
def bucket() -> Iterator[str]:
    """The address of a store with an empty bucket."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), EmptyBucket)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_study_is_planned_with_its_results_in_the_bucket(repository: Path, tmp_path: Path, bucket: str) -> None:
    variables = {"ACCESS_KEY": "someone", "SECRET_KEY": "something", "ENDPOINT_URL": bucket}
    found = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--dry-run", "--snakefile", str(repository / "Snakefile")),
            *("--directory", str(tmp_path), "--configfile", str(repository / "config/studies/smoke.yaml")),
            *("--workflow-profile", str(repository / "profiles/kubernetes")),
        ],
        capture_output=True, text=True, check=False,
        env={
            **os.environ, "PYTHONPATH": "",
            **{f"SNAKEMAKE_STORAGE_S3_{name}": value for name, value in variables.items()},
        },
    )  # fmt: skip
    printed = found.stdout + found.stderr
    assert found.returncode == 0, printed[-6000:]
    assert re.search(r"^scan_neurons +2$", printed, flags=re.MULTILINE)
    assert "s3://change-me/nnscan/results/smoke/report.html (in storage)" in printed
