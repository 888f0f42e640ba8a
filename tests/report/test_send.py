"""Reports really leave: a real SMTP server, a real webhook receiver, moto's server behind real boto3."""

from __future__ import annotations

import email
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiosmtpd.controller import Controller
from moto.server import ThreadedMotoServer

from app.report.deliver import deliver
from app.report.ledger import STARTED, Ledger
from app.report.send import Message, describe, send
from catalogs.errors import InputError, MissingError

MESSAGE = Message(
    key="weekly.2026-11-23",
    title="GPU cost, November 2026",
    summary="Spend $1,234 of $2,000.",
    forms={"html": "<p>$1,234</p>", "md": "$1,234", "json": '{"usd": 1234}', "csv": "BilledCost\n1234\n"},
    period="2026-11",
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite3")


class Receiver:
    """A webhook that keeps what it was sent and answers with the codes it was given, then 200."""

    def __init__(self, codes: list[int]) -> None:
        self.codes, self.received = codes, list[dict[str, Any]]()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append({"headers": dict(self.headers), "body": body.decode()})
                self.send_response(receiver.codes.pop(0) if receiver.codes else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver([])
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_webhook_gets_the_report_once_after_retries(receiver: Receiver, ledger: Ledger) -> None:
    receiver.codes = [503, 429]
    waits: list[float] = []
    destination = {"kind": "webhook", "url": receiver.url}
    first = deliver(MESSAGE, [destination], ledger, wait=waits.append)
    assert [o.state for o in first] == ["done"]
    assert waits == [2.0, 4.0]
    assert json.loads(receiver.received[-1]["body"]) == {"usd": 1234}
    keys = {r["headers"]["Idempotency-Key"] for r in receiver.received}
    assert len(keys) == 1
    second = deliver(MESSAGE, [destination], ledger, wait=waits.append)
    assert [o.state for o in second] == ["skipped"]
    assert len(receiver.received) == 3


def test_a_refusal_is_not_retried_and_does_not_stop_the_others(
    receiver: Receiver, ledger: Ledger, tmp_path: Path
) -> None:
    receiver.codes = [403]
    target = tmp_path / "out" / "cost-{period}.{form}"
    outcomes = deliver(
        MESSAGE, [{"kind": "webhook", "url": receiver.url}, {"kind": "file", "path": str(target)}], ledger
    )
    assert [o.state for o in outcomes] == ["failed", "done"]
    assert len(receiver.received) == 1
    assert (tmp_path / "out" / "cost-2026-11.html").read_text() == "<p>$1,234</p>"


def test_a_failed_delivery_is_tried_again_next_time(receiver: Receiver, ledger: Ledger) -> None:
    receiver.codes = [500] * 4
    destination = {"kind": "webhook", "url": receiver.url}
    assert deliver(MESSAGE, [destination], ledger, wait=lambda _: None)[0].state == "failed"
    assert deliver(MESSAGE, [destination], ledger, wait=lambda _: None)[0].state == "done"


@pytest.mark.parametrize("wrong", [{"port": "mail"}, {"from": "a@x\nBcc: b@x"}, {"to": 5}])
def test_a_field_of_a_wrong_kind_fails_its_own_delivery_alone(wrong: dict[str, object], ledger: Ledger) -> None:
    good: dict[str, object] = {"kind": "smtp", "host": "127.0.0.1", "port": 9, "from": "a@x", "to": "b@x"}
    (outcome,) = deliver(MESSAGE, [good | wrong], ledger, wait=lambda _: None)
    assert outcome.state == "failed"


def test_slack_gets_text_and_the_address_stays_secret(
    receiver: Receiver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_URL", receiver.url)
    destination = {"kind": "slack", "url_env": "SLACK_URL"}
    outcome = deliver(MESSAGE, [destination], ledger)[0]
    assert outcome.state == "done"
    assert "GPU cost" in json.loads(receiver.received[0]["body"])["text"]
    assert receiver.url not in outcome.destination + outcome.detail
    assert receiver.url.encode() not in ledger.path.read_bytes()


def test_a_delivery_cut_off_is_repeated_only_where_a_repeat_is_recognised(
    receiver: Receiver, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_URL", receiver.url)
    slack, hook = {"kind": "slack", "url_env": "SLACK_URL"}, {"kind": "webhook", "url": receiver.url}
    deliver(MESSAGE, [slack, hook], ledger)
    for done in ledger.deliveries():
        ledger.write(done.key, done.destination, STARTED, done.changed_at)  # as a kill while sending leaves it
    outcomes = deliver(MESSAGE, [slack, hook], ledger)
    assert [o.state for o in outcomes] == ["uncertain", "done"]
    keys = [r["headers"].get("Idempotency-Key") for r in receiver.received]
    assert keys[1] == keys[2] is not None  # the receiver sees that it is the same report
    assert [o.state for o in deliver(MESSAGE, [slack], ledger)] == ["uncertain"]
    assert [o.state for o in deliver(MESSAGE, [slack], ledger, again=True)] == ["done"]


class Mailbox:
    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802
        self.mails.append(envelope.content)
        return "250 OK"


def test_mail_has_text_html_and_csv() -> None:
    mailbox = Mailbox()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Controller(mailbox, hostname="127.0.0.1", port=port)
    server.start()
    try:
        destination = {
            "kind": "smtp", "host": "127.0.0.1", "port": port, "starttls": False, "from": "a@example.org",
            "to": ["b@example.org"],
        }  # fmt: skip
        send(destination, MESSAGE)
    finally:
        server.stop()
    post = email.message_from_bytes(mailbox.mails[0])
    kinds = [part.get_content_type() for part in post.walk()]
    assert {"text/plain", "text/html", "text/csv"} <= set(kinds)
    assert post["Message-ID"] == "<weekly.2026-11-23@gpu-capacity-planner>"


def test_a_mail_server_that_is_down_fails_after_retries_without_a_traceback(ledger: Ledger) -> None:
    destination = {"kind": "smtp", "host": "127.0.0.1", "port": 1, "from": "a@example.org", "to": "b@example.org"}
    waits: list[float] = []
    outcome = deliver(MESSAGE, [destination], ledger, wait=waits.append)[0]
    assert (outcome.state, len(waits)) == ("failed", 3)
    assert "ConnectionRefusedError" in outcome.detail


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_s3_sns_and_ses_take_the_report(aws: str) -> None:
    s3 = boto3.client("s3", endpoint_url=aws)
    s3.create_bucket(Bucket="reports")
    send({"kind": "s3", "bucket": "reports", "key": "gpu/{period}.{form}", "endpoint_url": aws}, MESSAGE)
    assert s3.get_object(Bucket="reports", Key="gpu/2026-11.html")["Body"].read() == b"<p>$1,234</p>"

    topic = boto3.client("sns", endpoint_url=aws).create_topic(Name="cost")["TopicArn"]
    assert "SNS took it" in send({"kind": "sns", "topic_arn": topic, "endpoint_url": aws}, MESSAGE)

    ses = {"kind": "ses", "from": "a@example.org", "to": ["b@example.org"], "endpoint_url": aws}
    with pytest.raises(InputError, match="MessageRejected"):
        send(ses, MESSAGE)  # the sender is not verified
    boto3.client("ses", endpoint_url=aws).verify_email_identity(EmailAddress="a@example.org")
    assert "SES took it" in send(ses, MESSAGE)


def test_bad_destinations_are_refused_before_anything_is_sent(receiver: Receiver, ledger: Ledger) -> None:
    good = {"kind": "webhook", "url": receiver.url}
    for bad, said in (
        ({"kind": "slak", "url_env": "X"}, "did you mean slack"),
        ({"kind": "s3", "bucket": "b"}, "needs key"),
        ({"kind": "smtp", "host": "h", "from": "a"}, "needs to"),
    ):
        with pytest.raises(InputError) as caught:
            deliver(MESSAGE, [good, bad], ledger)
        assert said in str(caught.value)
    assert receiver.received == []


def test_secrets_in_the_file_are_refused_and_absent_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    smtp = {"kind": "smtp", "host": "h", "from": "a", "to": "b", "user": "u"}
    with pytest.raises(InputError, match="must not stand in the file"):
        send({**smtp, "password": "hunter2"}, MESSAGE)
    monkeypatch.delenv("NO_SUCH_SECRET", raising=False)
    with pytest.raises(MissingError, match="NO_SUCH_SECRET"):
        send({**smtp, "password_env": "NO_SUCH_SECRET"}, MESSAGE)
    assert "hunter2" not in describe({**smtp, "password": "hunter2"})
