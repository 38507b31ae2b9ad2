import contextlib
import gzip
import hashlib
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.sources import download
from vcc_fm.sources.fasta import read_proteins
from vcc_fm.sources.remote import open_local, read_bytes

CONTENT = bytes(range(256)) * 12_000  # some blocks long
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append(self.path)
        getattr(self, "answer_" + self.path.split("/")[1].split("?")[0])()

    def send(self, content, status=200, announce=True, **headers):
        self.send_response(status)
        if announce:
            self.send_header("Content-Length", str(self.server.length or len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        self.close_connection = True

    def answer_whole(self):
        self.send(CONTENT)

    def answer_cut(self):
        self.server.length = len(CONTENT)
        self.send(CONTENT[: len(CONTENT) // 2])
        self.server.length = None

    def answer_chunked(self):
        self.send(b"4\r\nMEEP\r\n0\r\n\r\n", announce=False, Transfer_Encoding="chunked")

    def answer_chunkedcut(self):
        self.send(b"4\r\nMEEP\r\n4\r\nME", announce=False, Transfer_Encoding="chunked")

    def answer_resume(self):
        """Half of the file with a strong ETag, then, for who asks for the rest of that one, the rest."""
        self.server.ranges.append((self.headers.get("Range"), self.headers.get("If-Range")))
        half = len(CONTENT) // 2
        if self.headers.get("Range") == f"bytes={half}-" and self.headers.get("If-Range") == self.server.etag:
            part = {"Content_Range": f"bytes {half}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": self.server.etag}
            self.send(CONTENT[half:], status=206, **part)
        elif self.headers.get("Range"):
            self.send(CONTENT, ETag=self.server.etag)
        else:
            self.server.length = len(CONTENT)
            self.send(CONTENT[:half], ETag=self.server.etag)
            self.server.length = None

    def answer_empty(self):
        self.send(b"")

    def answer_page(self):
        self.send(b"\n<!DOCTYPE html><p>Log in", Content_Type="application/octet-stream")

    def answer_type(self):
        self.send(b"<p>Log in", Content_Type="text/html; charset=utf-8")

    def answer_half(self):
        self.send(gzip.compress(CONTENT)[:2000])

    def answer_open(self):
        self.send(gzip.compress(CONTENT)[:2000], announce=False, Connection="close")

    def answer_slow(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        self.close_connection = True

    def answer_inside(self):
        self.send(b"", status=302, Location=self.server.inside)

    def answer_gone(self):
        self.send(b"no", status=404)

    def answer_moved(self):
        self.send(b"", status=302, Location="/whole/again")

    def answer_leave(self):
        self.send(b"", status=302, Location="http://proteins.example/p.fa?token=SECRET")

    # The Hub's two answers: a file with its etag and commit, or an error that names itself.
    def answer_ORG(self):
        if "/missing.pt" in self.path:
            self.send(b"", status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        elif "/gone/" in self.path:
            self.send(b"", status=404, X_Error_Code="RevisionNotFound")
        elif "/private/" in self.path:
            self.send(b"", status=401, X_Error_Code="RepoNotFound")
        elif "/gated/" in self.path:
            self.send(b"", status=403, X_Error_Code="GatedRepo")
        else:
            self.send(b"vectors of " + self.path.encode(), ETag='"abc"', X_Repo_Commit=COMMIT)

    answer_datasets = answer_ORG


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VCC_FM_CACHE", str(tmp_path / "cache"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.length = None
    server.ranges, server.etag = [], '"one"'
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    # Both were read from the environment when the library was imported.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return server


def kept(folder):
    return sorted(file.name for file in folder.glob("*") if not file.name.startswith("."))


# --------------------------------------------------------------------------------------------------------------- paths
def test_a_local_path_is_expanded_and_must_be_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEINS", str(tmp_path))
    (tmp_path / "p.fa").write_text("x")
    assert open_local("${PROTEINS}/p.fa") == tmp_path / "p.fa"
    with pytest.raises(UserError, match=r"q\.fa: no such file; get it from UniProt$"):
        open_local("${PROTEINS}/q.fa", get="UniProt")
    with pytest.raises(UserError, match="is a folder; a file is expected"):
        open_local("${PROTEINS}")
    with pytest.raises(UserError, match="NOWHERE_SET is not set"):
        open_local("${NOWHERE_SET}/p.fa")


@pytest.mark.parametrize("name", ["p.txt", "p.gz"])
def test_bytes_are_unpacked_by_content_and_not_by_name(tmp_path, name):
    for content in (b"MEEP" * 1000, gzip.compress(b"MEEP" * 1000)):
        (tmp_path / name).write_bytes(content)
        with read_bytes(tmp_path / name, "text") as file:
            assert file.read() == b"MEEP" * 1000


# ------------------------------------------------------------------------------------------------------------- the web
def test_a_download_is_whole_and_kept(server, tmp_path):
    path = open_local(f"{server.url}/whole/p.fa.gz?token=SECRET")
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-p.fa.gz")
    assert "SECRET" not in str(path)
    assert open_local(f"{server.url}/whole/p.fa.gz?token=SECRET") == path
    assert server.asked == ["/whole/p.fa.gz?token=SECRET"]
    other = open_local(f"{server.url}/whole/p.fa.gz?token=OTHER")
    assert other != path
    assert kept(tmp_path / "cache") == sorted([path.name, other.name])


def test_a_cut_connection_leaves_nothing_and_the_next_call_asks_again(server, tmp_path):
    message = (
        rf"/cut/p\.fa: the connection was cut after {len(CONTENT) // 2:,} of {len(CONTENT):,} bytes; run it again$"
    )
    for times in (1, 2):
        with pytest.raises(UserError, match=message):
            open_local(f"{server.url}/cut/p.fa?token=SECRET")
        assert len(server.asked) == times
        assert kept(tmp_path / "cache") == []
    with pytest.raises(UserError, match="the connection was cut"):
        open_local(f"{server.url}/chunkedcut/p.fa")
    assert kept(tmp_path / "cache") == []


def test_what_a_killed_download_left_is_written_over(server, tmp_path):
    path = open_local(f"{server.url}/whole/p.fa")
    path.rename(path.with_name(path.name + ".partial"))
    assert open_local(f"{server.url}/whole/p.fa").read_bytes() == CONTENT
    assert kept(tmp_path / "cache") == [path.name]


def test_an_answer_without_length_and_a_redirect(server):
    assert open_local(f"{server.url}/chunked/p.fa").read_bytes() == b"MEEP"
    assert open_local(f"{server.url}/moved/p.fa").read_bytes() == CONTENT


def test_several_processes_download_once(server):
    url, paths = f"{server.url}/whole/p.fa", []
    threads = [threading.Thread(target=lambda: paths.append(open_local(url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert len(server.asked) == 1


def test_what_the_web_refuses(server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"/gone/p\.fa: the server answers 404 Not Found; check the address$"):
        open_local(f"{server.url}/gone/p.fa?token=SECRET")
    with pytest.raises(UserError, match=r"^http://proteins\.example/p\.fa: not an address to download from"):
        open_local(f"{server.url}/leave/p.fa")
    with pytest.raises(UserError, match=r"^http://proteins\.example/p\.fa: not an address.*use https://"):
        open_local("http://me:SECRET@proteins.example/p.fa")
    with pytest.raises(UserError, match=r"^https://proteins\.example/p\.fa: holds a user name or password"):
        open_local("https://me:SECRET@proteins.example/p.fa")
    with pytest.raises(UserError, match=r"s3://bucket/p\.fa: not an address to download from"):
        open_local("s3://bucket/p.fa")
    with pytest.raises(UserError, match="malformed"):
        open_local("https://[x/p.fa")
    with pytest.raises(
        UserError, match=r"http://127\.0\.0\.1:1/p\.fa: not downloaded \(.*refused\); check the network"
    ):
        open_local("http://127.0.0.1:1/p.fa?token=SECRET")
    assert kept(tmp_path / "cache") == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VCC_FM_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file: not writable .*set VCC_FM_CACHE"):
        open_local(f"{server.url}/whole/p.fa")


def test_a_cut_download_goes_on_where_it_is_the_same_file(server, tmp_path):
    url = f"{server.url}/resume/p.fa"
    with pytest.raises(UserError, match="the connection was cut"):
        open_local(url)
    path = open_local(url)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [(None, None), (f"bytes={len(CONTENT) // 2}-", '"one"')]
    assert kept(tmp_path / "cache") == [path.name]


def test_a_cut_download_begins_anew_where_the_file_has_changed(server, tmp_path):
    url = f"{server.url}/resume/p.fa"
    with pytest.raises(UserError, match="the connection was cut"):
        open_local(url)
    server.etag = '"two"'
    assert open_local(url).read_bytes() == CONTENT
    assert len(kept(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("empty", r"/empty/p\.fa: the server sent an empty file; check the address$"),
        ("page", "the server sent a web page, not a file; give the address of the file itself"),
        ("type", "the server sent a web page, not a file"),
        ("half", "the server sent gzip data cut short or damaged; run it again"),
        ("open", "the server sent gzip data cut short or damaged; run it again"),
    ],
)
def test_what_is_no_whole_file_is_not_kept(server, tmp_path, answer, message):
    with pytest.raises(UserError, match=message):
        open_local(f"{server.url}/{answer}/p.fa?token=SECRET")
    assert kept(tmp_path / "cache") == []


def test_a_server_that_trickles_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_SILENCE_S", 0.3)
    with pytest.raises(UserError, match=r"next to nothing came for 0 s, after \d+ bytes; run it again"):
        open_local(f"{server.url}/slow/p.fa")
    assert kept(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "target",
    [
        "https://10.0.0.1/p",
        "https://[::1]/p",
        "https://169.254.169.254/p",
        "https://[::ffff:10.0.0.1]/p",
        "other port",
    ],
)
def test_a_redirect_does_not_lead_inside(server, target):
    server.inside = target if target != "other port" else f"http://localhost:{server.server_port}/whole/p.fa"
    with pytest.raises(UserError, match=r"a redirect to .*, which is inside this machine or its network"):
        open_local(f"{server.url}/inside/p.fa")
    assert server.asked == ["/inside/p.fa"]


def test_a_name_that_leads_inside_is_seen_through(server, monkeypatch):
    ask = socket.getaddrinfo

    def resolve(host, *rest, **more):
        return ask("192.168.1.1" if host == "proteins.example" else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    server.inside = "https://proteins.example/p.fa?token=SECRET"
    with pytest.raises(UserError, match=r"^https://proteins\.example/p\.fa: a redirect to 192\.168\.1\.1,"):
        open_local(f"{server.url}/inside/p.fa")


def test_the_sha256_of_a_download_and_of_a_file(server, tmp_path):
    right, url = hashlib.sha256(CONTENT).hexdigest(), f"{server.url}/whole/p.fa"
    with pytest.raises(UserError, match=r"its SHA-256 is .*, the recipe says 0+; it is not kept; correct the sha256"):
        open_local(url, sha256="0" * 64)
    assert kept(tmp_path / "cache") == []
    path = open_local(url, sha256=right.upper())
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"-p\.fa: its SHA-256 is .*; remove it, and it is downloaded again$"):
        open_local(url, sha256=right)
    with pytest.raises(UserError, match=r"; get it again, or correct the sha256$"):
        open_local(str(path), sha256=right)


def test_a_damaged_download_is_named_with_what_to_do(server, tmp_path):
    url = f"{server.url}/whole/p.fa"
    path = open_local(url)
    for content in (gzip.compress(b">TP53\nMKT\n" * 99)[:-9], b"no FASTA"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"-p\.fa: .*; remove it, and it is downloaded again$"):
            read_proteins(url)


# ------------------------------------------------------------------------------------------------------------- the Hub
@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("hf://ORG/NAME/a/p.pt", "/ORG/NAME/resolve/main/a/p.pt"),
        ("hf://ORG/NAME@v1/p.pt", "/ORG/NAME/resolve/v1/p.pt"),
        ("hf://datasets/ORG/NAME@refs%2Fpr%2F1/p.pt", "/datasets/ORG/NAME/resolve/refs%2Fpr%2F1/p.pt"),
    ],
)
def test_a_file_of_the_hub(hub, url, asked):
    assert open_local(url).read_bytes() == b"vectors of " + asked.encode()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://ORG/NAME/missing.pt", r"ORG/NAME has no file missing\.pt in revision main"),
        ("hf://ORG/NAME@gone/p.pt", "ORG/NAME has no revision gone"),
        ("hf://datasets/ORG/private/p.pt", "no dataset repository ORG/private"),
        ("hf://ORG/gated/p.pt", "ORG/gated is gated; accept its terms"),
        ("hf://datasets/ORG/p.pt", "write hf://datasets/ORG/NAME/FILE"),
        ("hf://NAME/p.pt", "write hf://datasets/ORG/NAME/FILE"),
        ("hf://ORG/--a..b/p.pt", "not transferred"),
    ],
)
def test_what_the_hub_refuses(hub, url, message):
    with pytest.raises(UserError, match=message) as caught:
        open_local(url)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the local cache, and the Hub cannot be reached"):
        open_local("hf://ORG/NAME/p.pt")
