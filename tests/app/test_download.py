"""What a download promises: once, resumed or begun again, whole or not at all. The server is our own, on 127.0.0.1."""

import http.server
import threading
import zipfile

import pytest

from lstmfast.data import download, load_corpus

CONTENT = bytes(range(256)) * 40


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.site.content`, as able, as honest and as reliable as the site says."""

    def do_GET(self):
        site, asked = self.server.site, self.headers.get("Range")
        site.requests.append(asked)
        if site.status is not None:
            return self.send_error(site.status)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and site.ranges else 0
        if start and start >= len(site.content):
            return self.send_error(416)
        start += site.shift if start else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        if site.tells_length:
            self.send_header("Content-Length", str(len(site.content) - start))
        self.send_header("ETag", site.etag)
        self.end_headers()
        end = len(site.content) if site.breaks_at is None else site.breaks_at
        self.wfile.write(site.content[start:end])

    def log_message(self, *arguments):
        """Keep the test output clean."""


class Site:
    """What the server has, how it behaves, and the Range header of every request it got."""

    def __init__(self, address):
        self.url = f"http://{address[0]}:{address[1]}/files/text.bin"
        self.content, self.etag, self.requests = CONTENT, '"one"', []
        self.ranges, self.tells_length, self.breaks_at, self.status, self.shift = True, True, None, None, 0


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = Site(server.server_address)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.site
        server.shutdown()
        thread.join()


@pytest.fixture
def broken_off(site, tmp_path):
    """A site whose file of 10,240 bytes came only to byte 4,000 at the first attempt, and which is sound again."""
    site.breaks_at = 4000
    with pytest.raises(OSError, match="ended after 4000 of 10240 bytes"):
        download(site.url, tmp_path)
    site.breaks_at = None
    site.requests.clear()
    return site


def test_a_file_comes_whole_and_under_its_own_name(site, tmp_path):
    path = download(site.url, tmp_path)
    assert (path.read_bytes(), path.name.endswith("-text.bin")) == (CONTENT, True)


def test_a_file_that_is_there_is_not_asked_for_again(site, tmp_path):
    first = download(site.url, tmp_path)
    assert (download(site.url, tmp_path), len(site.requests)) == (first, 1)


def test_two_addresses_with_one_file_name_do_not_meet(site, tmp_path):
    assert download(site.url, tmp_path) != download(site.url.replace("files", "others"), tmp_path)


def test_a_length_that_the_server_does_not_tell_is_no_hindrance(site, tmp_path):
    site.tells_length = False
    assert download(site.url, tmp_path, expected_bytes=len(CONTENT)).read_bytes() == CONTENT


def test_progress_ends_at_the_length_of_the_file(site, tmp_path):
    calls = []
    download(site.url, tmp_path, progress=lambda *call: calls.append(call))
    assert calls[-1] == ("download", len(CONTENT), len(CONTENT))


def test_an_interrupted_download_leaves_no_file_under_the_final_name(broken_off, tmp_path):
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]


def test_an_interrupted_download_asks_only_for_the_rest(broken_off, tmp_path):
    content = download(broken_off.url, tmp_path).read_bytes()
    assert (content, broken_off.requests) == (CONTENT, ["bytes=4000-"])


def test_a_resumed_download_leaves_nothing_but_the_file(broken_off, tmp_path):
    path = download(broken_off.url, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_download_interrupted_twice_is_still_put_together(broken_off, tmp_path):
    broken_off.breaks_at = 7000
    with pytest.raises(OSError, match="ended after 7000 of 10240 bytes; run the same command again to resume"):
        download(broken_off.url, tmp_path)
    broken_off.breaks_at = None
    assert download(broken_off.url, tmp_path).read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_sends_the_file_from_its_start(broken_off, tmp_path):
    broken_off.ranges = False
    assert download(broken_off.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[::-1], CONTENT[:5000], CONTENT[:100]], ids=["same size", "5000", "100"])
def test_a_file_that_changed_on_the_server_is_begun_again(broken_off, tmp_path, content):
    broken_off.content, broken_off.etag = content, '"two"'
    path = download(broken_off.url, tmp_path)
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (content, [path])


def test_the_beginning_of_a_file_that_changed_is_thrown_away_by_a_server_without_ranges_too(broken_off, tmp_path):
    broken_off.ranges, broken_off.etag = False, '"two"'
    path = download(broken_off.url, tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_range_that_starts_elsewhere_is_not_glued_on(broken_off, tmp_path):
    broken_off.shift = 10
    assert download(broken_off.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("tells_length", [True, False])
@pytest.mark.parametrize("expected_bytes", [5000, 31344016])
def test_a_file_of_another_size_is_refused_with_both_numbers_and_not_kept(site, tmp_path, tells_length, expected_bytes):
    site.tells_length = tells_length
    with pytest.raises(ValueError, match=f"has 10240 bytes, but expected_bytes is {expected_bytes}"):
        download(site.url, tmp_path, expected_bytes=expected_bytes)
    assert list(tmp_path.iterdir()) == []


def test_a_file_announced_with_another_size_is_refused_before_it_is_fetched(site, tmp_path):
    calls = []
    with pytest.raises(ValueError):
        download(site.url, tmp_path, expected_bytes=31344016, progress=lambda *call: calls.append(call))
    assert calls == []


def test_a_file_that_is_there_but_of_another_size_is_refused_with_its_path(site, tmp_path):
    path = download(site.url, tmp_path)
    with pytest.raises(ValueError) as caught:
        download(site.url, tmp_path, expected_bytes=1)
    assert str(path) in str(caught.value) and "has 10240 bytes, but expected_bytes is 1" in str(caught.value)


@pytest.mark.parametrize("status, reason", [(404, "404 Not Found"), (503, "503 Service Unavailable")])
def test_a_refusal_of_the_server_is_passed_on(site, tmp_path, status, reason):
    site.status = status
    with pytest.raises(OSError, match=f"cannot download {site.url}: the server answered {reason}"):
        download(site.url, tmp_path)


def test_a_server_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(OSError, match=r"cannot download http://127\.0\.0\.1:1/text8\.zip: .*refused"):
        download("http://127.0.0.1:1/text8.zip", tmp_path)


def test_an_address_of_a_zip_is_a_text_source(site, tmp_path):
    with zipfile.ZipFile(tmp_path / "text8.zip", "w") as archive:
        archive.writestr("text8", " anarchism")
    site.content, site.url = (tmp_path / "text8.zip").read_bytes(), site.url.replace("text.bin", "text8.zip")
    corpus = load_corpus(
        [site.url], vocabulary="udacity", cache_folder=tmp_path / "cache", expected_bytes=len(site.content)
    )
    assert (corpus.vocabulary.decode(corpus.ids), corpus.sources) == (" anarchism", (site.url,))
