"""The review page: over HTTP as an attacker would try, and in a real browser as a person would."""

from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import browser
from conftest import pictures, waves, write_folder

from antibackdoor.app.reviewing import ReviewSettings, open_review
from antibackdoor.data.samples import Samples
from antibackdoor.errors import ConfigError, DataError, RunError
from antibackdoor.protocols import Verdict
from antibackdoor.report import save_gallery
from antibackdoor.review.server import HOST, ReviewServer
from antibackdoor.runs.decisions import Decision, read_decisions, write_decisions
from antibackdoor.runs.samples_table import SamplesTable, write_samples_table

EVIL = "<script>document.title='evil'</script>"


def reviewed(run: Path, samples: Samples, *, isolated: bool = True) -> Path:
    """A run folder as a scan leaves it: every fourth sample is suspected, under two pairs of labels."""
    run.mkdir(parents=True)
    suspected = (np.arange(len(samples)) % 4 < 2) & isolated
    suspicion = np.linspace(0.1, 0.9, len(samples))
    verdict = Verdict.isolating(suspicion, suspected, samples, poisoned=isolated, target_labels=(0,))
    verdict = replace(verdict, suggested_label=np.where(suspected, 1 - samples.labels, samples.labels))
    write_samples_table(run, SamplesTable(samples.ids, samples.labels, samples.class_names, verdict))
    save_gallery(run, samples, np.argsort(-verdict.suspicion), suspected)
    return run


def named(samples: Samples) -> Samples:
    return replace(samples, class_names=np.array([EVIL, "b"]))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    run = reviewed(tmp_path / "run", named(pictures(40)))
    with ReviewServer(open_review(ReviewSettings(run))) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield found
        found.shutdown()


def ask(
    server: ReviewServer, path: str, values: Any = None, *, token: str | None = None, **headers: str
) -> tuple[int, str, Any]:
    """Status, text and headers of an answer."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=10)
    place = f"/{server.token if token is None else token}/{path}"
    body = None if values is None else json.dumps(values)
    sent = {"Content-Type": "application/json"} if values is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if values is None else "POST", place, body, sent)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def test_only_who_knows_the_address_gets_anything(server: ReviewServer) -> None:
    assert server.server_address[0] == "127.0.0.1", "no other machine reaches it"
    assert len(server.token) >= 40
    for path, values in (("", None), ("cards?group=0&from=0", None), ("decide", {"group": 0, "decision": "rejected"})):
        assert ask(server, path, values)[0] == 200
        for wrong in ("", "x", server.token[:-1], server.token + "x"):
            assert ask(server, path, values, token=wrong)[:2] == (404, "there is nothing here")
        # DNS rebinding: the browser of the victim talks to us under the attacker's name.
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1", ""):
            assert ask(server, path, values, Host=host)[0] == 404
        assert ask(server, path, values, Host=f"localhost:{server.server_port}")[0] == 200
        assert ask(server, path, values, Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(server, "undo", {}, Origin="http://evil.example")[0] == 403
    assert ask(server, "undo", {}, Content_Type="text/plain")[0] == 400, "a form of another page could send that"


def test_bad_requests_change_nothing(server: ReviewServer) -> None:
    for path, values, status in [
        ("decide", {"rows": [0], "decision": "maybe"}, 409),
        ("decide", {"rows": [10**9], "decision": "rejected"}, 409),
        ("decide", {"rows": [-1], "decision": "rejected"}, 409),
        ("decide", {"group": 99, "decision": "rejected"}, 409),
        ("decide", {"rows": ["0"], "decision": "rejected"}, 400),
        ("decide", {"rows": [True], "decision": "rejected"}, 400),
        ("decide", [1], 400),
        ("elsewhere", {}, 400),
    ]:
        assert ask(server, path, values)[0] == status, (path, values)
    assert ask(server, "cards?group=99&from=0")[0] == ask(server, "../../etc/passwd")[0] == 404
    assert not server.page.session.path.exists()


def test_names_are_text_and_the_policy_forbids_the_rest(server: ReviewServer) -> None:
    status, page, headers = ask(server, "")
    cards = ask(server, "cards?group=0&from=0")[1]
    assert status == 200 and EVIL not in page + cards and "&lt;script&gt;" in page and "&lt;script&gt;" in cards
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and f"'nonce-{server.page.nonce}'" in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert "http://" not in page + cards and "https://" not in page + cards, "no resources of others"


def test_each_decision_is_saved_and_can_be_undone(server: ReviewServer) -> None:
    session = server.page.session
    first, second = session.groups[0].rows[:2].tolist()
    answer = json.loads(ask(server, "decide", {"rows": [first], "decision": "accepted"})[1])
    assert answer["changed"] == {str(first): "accepted"} and answer["counts"][0] == [1, 0, 9]
    ask(server, "decide", {"group": 0, "decision": "rejected"})
    said = read_decisions(session.path)
    assert {decision.decision for decision in said.values()} == {"rejected"} and len(said) == 10
    assert json.loads(ask(server, "undo", {})[1])["counts"][0] == [1, 0, 9]
    assert {name: one.decision for name, one in read_decisions(session.path).items()} == {
        str(session.table.ids[first]): "accepted"
    }
    ask(server, "decide", {"rows": [first], "decision": ""})
    assert read_decisions(session.path) == {} and json.loads(ask(server, "undo", {})[1])["changed"]
    # Another program, such as an editor, has saved the file meanwhile: its work is not overwritten.
    write_decisions(session.path, {"x": Decision("accepted")})
    status, text, _ = ask(server, "decide", {"rows": [second], "decision": "accepted"})
    assert status == 409 and "changed by another program" in text
    assert list(read_decisions(session.path)) == ["x"] and session.said(second) == ""


def test_a_review_goes_on_and_shows_all_pictures(tmp_path: Path) -> None:
    samples = pictures(240)
    run = reviewed(tmp_path / "run", samples)
    write_decisions(run / "decisions.csv", {str(samples.ids[0]): Decision("rejected")})
    page = open_review(ReviewSettings(run))
    assert page.session.said(0) == "rejected" and page.trigger is not None and any("--data" in n for n in page.notes)
    shown = [page.pictures(row) is not None for row in range(240)]
    assert sum(shown) == 48
    data = write_folder(samples, tmp_path / "data")
    about = {"settings": {"model": {"input_shape": [1, 8, 8]}}, "command": [], "versions": {}}
    (run / "config.json").write_text(json.dumps({"format": "antibackdoor run 1", **about}))
    whole = open_review(ReviewSettings(run, data, tmp_path / "cache"))
    assert all(whole.pictures(row) is not None for row in range(240)) and not whole.notes
    (data / "class0" / "0000.png").unlink()
    with pytest.raises(DataError, match=r"lacks 'class0/0000\.png'"):
        open_review(ReviewSettings(run, data, tmp_path / "cache"))
    with pytest.raises(RunError):
        open_review(ReviewSettings(tmp_path))
    with ReviewServer(page) as server, pytest.raises(ConfigError, match="give another --port"):
        ReviewServer(page, server.server_port)


def test_a_ranking_shows_the_most_suspicious(tmp_path: Path) -> None:
    page = open_review(ReviewSettings(reviewed(tmp_path / "run", waves(120), isolated=False)))
    assert sum(len(group.rows) for group in page.session.groups) == 100 and "None of 120" in page.headline
    assert "<svg" in page.cards(0, 0)


def test_a_person_reviews_in_a_browser(server: ReviewServer, tmp_path: Path) -> None:
    session = server.page.session
    with browser(tmp_path / "profile") as page:
        page.open(server.url)
        page.until("document.querySelectorAll('.card img').length === 10")
        assert page.run("document.title") == "Review of run", "no name of a class has run as a script"
        assert page.run("[...document.images].every((image) => image.naturalWidth > 0)")
        page.run("document.querySelector('.card .accept').click()")
        page.until("document.querySelectorAll('.card[data-said=accepted]').length === 1")
        page.press("ArrowRight")
        page.press("r")
        page.until("document.querySelectorAll('.card[data-said=rejected]').length === 1")
        page.press("u")
        page.until("document.querySelectorAll('.card[data-said=rejected]').length === 0")
        page.press("r", shift=True)
        page.until("document.querySelectorAll('.card[data-said=rejected]').length === 10")
        page.run("document.querySelectorAll('details')[1].open = true")
        page.until("document.querySelectorAll('.card').length === 20")
        assert page.run("document.querySelector('#progress').textContent") == "10 of 20 decided"
        for width in (400, 1200):
            page.open(server.url, width=width, dark=True)
            page.until("document.querySelectorAll('.card[data-said=rejected]').length === 10")
            assert page.run("document.documentElement.scrollWidth") <= width, "nothing sticks out"
        page.run("document.querySelector('#finish').click()")
        page.until("!document.querySelector('#done').hidden")
    assert [one.decision for one in read_decisions(session.path).values()] == ["rejected"] * 10


def test_the_command_serves_until_ctrl_c(start: Callable[..., Any], call: Callable[..., Any], tmp_path: Path) -> None:
    run = reviewed(tmp_path / "run", pictures(16))
    process = start("review", run)
    address = urlsplit(process.stdout.readline().removeprefix("Review: ").strip())
    connection = http.client.HTTPConnection(address.netloc, timeout=10)
    body = json.dumps({"group": 0, "decision": "accepted"})
    connection.request("POST", address.path + "decide", body, {"Content-Type": "application/json"})
    assert connection.getresponse().read()
    code, _, err = call("review", run)
    assert code == 2 and "another process writes to" in err, "one review at a time"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "decisions.csv" in out, err
    assert "4 suspects accepted, 0 rejected, 4 open" in err and "antibackdoor train DATA --decisions" in err
    assert len(read_decisions(run / "decisions.csv")) == 4
    assert sorted(path.name for path in run.iterdir()) == ["decisions.csv", "gallery.npz", "samples.parquet"]
