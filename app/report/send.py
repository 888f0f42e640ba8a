"""A rendered report on its way: to a file, S3, mail (SES or SMTP), SNS, Slack or any webhook.

Secrets come from the environment (``password_env: SMTP_PASSWORD``) or the ordinary AWS chain, are never written down
and never shown. Each sender raises ``TransientError`` for what is worth another try and ``InputError`` or
``MissingError`` for what is not.
"""

from __future__ import annotations

import json
import os
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from catalogs.errors import InputError, MissingError, PlanError

CONTENT_TYPES = {"html": "text/html", "md": "text/markdown", "json": "application/json", "csv": "text/csv"}


class TransientError(Exception):
    """The destination failed in a way that another try may mend."""


@dataclass(frozen=True)
class Message:
    """A report ready to leave: its forms by name, and the key that makes a repeat recognisable."""

    key: str
    title: str
    summary: str  # a few lines of plain text
    forms: Mapping[str, str]  # html, md, json, csv -> content
    period: str  # for file and object names: 2026-11


Destination = Mapping[str, Any]


def describe(destination: Destination) -> str:
    """A destination in a few words, without secrets: what a dry run shows and the ledger keeps."""
    kind = kind_of(destination)
    where = {
        "file": destination.get("path"),
        "s3": f"s3://{destination.get('bucket')}/{destination.get('key')}",
        "ses": ", ".join(_list(destination, "to")),
        "smtp": f"{', '.join(_list(destination, 'to'))} by {destination.get('host')}",
        "sns": destination.get("topic_arn"),
        "slack": f"${destination.get('url_env')}",
        "webhook": destination.get("url") or f"${destination.get('url_env')}",
    }[kind]
    return f"{kind}: {where}"


def kind_of(destination: Destination) -> str:
    """The destination's kind.

    Raises:
        InputError: unknown kind, or a field that the kind needs is absent.
    """
    from catalogs.names import nearest

    kind = destination.get("kind")
    if kind not in SENDERS:
        close = nearest(str(kind), SENDERS)
        raise InputError(
            f"unknown destination kind {kind!r}", where="send", remedy=f"one of {', '.join(SENDERS)}"
            + (f"; did you mean {close[0]}?" if close else ""),
        )  # fmt: skip
    absent = [field for field in NEEDS[kind] if not destination.get(field)]
    if absent:
        raise InputError(f"a {kind} destination needs {' and '.join(absent)}", where="send")
    return str(kind)


def send(destination: Destination, message: Message) -> str:
    """Send a message; returns what the destination answered, in a few words.

    Raises:
        TransientError: worth another try.
        InputError, MissingError: not worth another try.
    """
    sender = SENDERS[kind_of(destination)]
    try:
        return sender(destination, message)
    except PlanError:
        raise
    except (ValueError, TypeError) as error:  # a port that is no number, an address with a line break
        raise InputError(f"a field of the destination cannot be used: {error}", where="send") from error


def _form(destination: Destination, default: str) -> str:
    form = str(destination.get("form", default))
    if form not in CONTENT_TYPES:
        raise InputError(f"unknown report form {form!r}", where="send", remedy=f"one of {', '.join(CONTENT_TYPES)}")
    return form


def _named(text: str, message: Message, form: str) -> str:
    return text.replace("{period}", message.period).replace("{form}", form).replace("{key}", message.key)


def _list(destination: Destination, field: str) -> list[str]:
    value = destination.get(field) or []
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def _secret(destination: Destination, field: str) -> str | None:
    """A secret named by an environment variable; a secret written into the file is refused."""
    if destination.get(field):
        raise InputError(
            f"{field} must not stand in the file", where="send", why="schedules are shared and kept in version control",
            remedy=f"{field}_env: NAME_OF_AN_ENVIRONMENT_VARIABLE",
        )  # fmt: skip
    name = destination.get(f"{field}_env")
    if not name:
        return None
    value = os.environ.get(str(name))
    if not value:
        raise MissingError(f"the environment variable {name} is not set", where="send", remedy=f"export {name}=...")
    return value


def _to_file(destination: Destination, message: Message) -> str:
    from catalogs.files import write_text

    form = _form(destination, "html")
    path = Path(_named(str(destination["path"]), message, form))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, message.forms[form])
    except OSError as error:
        raise TransientError(f"cannot write {path}: {error.strerror}") from error
    return f"wrote {path}"


def _aws(service: str, destination: Destination) -> Any:
    import boto3

    return boto3.client(  # type: ignore[call-overload]
        service, region_name=destination.get("region"), endpoint_url=destination.get("endpoint_url")
    )


def _aws_call(call: Callable[[], Any]) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        return call()
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise MissingError(
            "no AWS credentials", remedy="the ordinary AWS way: a profile, SSO, a role, environment"
        ) from error
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation"):
            raise MissingError(
                f"AWS denied {error.operation_name}", remedy=f"allow the action {error.operation_name} to this role"
            ) from error
        if code in ("ExpiredToken", "ExpiredTokenException"):
            raise MissingError("the AWS token has expired", remedy="log in again") from error
        if error.response["ResponseMetadata"].get("HTTPStatusCode", 500) < 500 and "Throttl" not in code:
            raise InputError(f"AWS refused {error.operation_name}: {code}") from error
        raise TransientError(f"AWS answered {code} to {error.operation_name}") from error
    except BotoCoreError as error:
        raise TransientError(f"AWS was not reached: {error}") from error


def _to_s3(destination: Destination, message: Message) -> str:
    form = _form(destination, "html")
    key = _named(str(destination["key"]), message, form)
    _aws_call(
        lambda: _aws("s3", destination).put_object(
            Bucket=destination["bucket"], Key=key, Body=message.forms[form].encode(),
            ContentType=f"{CONTENT_TYPES[form]}; charset=utf-8",
        )
    )  # fmt: skip
    return f"stored s3://{destination['bucket']}/{key}"


def mail(destination: Destination, message: Message) -> EmailMessage:
    """The report as a mail: plain text, HTML and the CSV attached; its Message-ID is the delivery's key."""
    post = EmailMessage()
    post["Subject"] = message.title
    post["From"] = str(destination["from"])
    post["To"] = ", ".join(_list(destination, "to"))
    post["Message-ID"] = f"<{message.key}@gpu-capacity-planner>"
    post.set_content(message.summary)
    post.add_alternative(message.forms["html"], subtype="html")
    post.add_attachment(message.forms["csv"], subtype="csv", filename=f"gpu-cost-{message.period}.csv")
    return post


def _to_ses(destination: Destination, message: Message) -> str:
    raw = mail(destination, message).as_bytes()
    answer = _aws_call(lambda: _aws("ses", destination).send_raw_email(RawMessage={"Data": raw}))
    return f"SES took it as {answer['MessageId']}"


def _to_smtp(destination: Destination, message: Message) -> str:
    port = int(destination.get("port", 587))
    user, password = destination.get("user"), _secret(destination, "password")
    try:
        with smtplib.SMTP(str(destination["host"]), port, timeout=30) as server:
            if destination.get("starttls", port == 587):
                server.starttls(context=ssl.create_default_context())
            if user:
                server.login(str(user), password or "")
            server.send_message(mail(destination, message))
    except smtplib.SMTPAuthenticationError as error:
        raise MissingError("the mail server refused the login", remedy="check user and password_env") from error
    except (smtplib.SMTPRecipientsRefused, smtplib.SMTPSenderRefused) as error:
        raise InputError("the mail server refused an address", where="send", remedy="check from and to") from error
    except (OSError, smtplib.SMTPException) as error:
        raise TransientError(f"the mail server failed: {type(error).__name__}") from error
    return f"mailed to {', '.join(_list(destination, 'to'))}"


def _to_sns(destination: Destination, message: Message) -> str:
    topic = str(destination["topic_arn"])
    extra = {"MessageGroupId": "report", "MessageDeduplicationId": message.key} if topic.endswith(".fifo") else {}
    answer = _aws_call(
        lambda: _aws("sns", destination).publish(
            TopicArn=topic, Subject=message.title[:100], Message=message.summary, **extra
        )
    )
    return f"SNS took it as {answer['MessageId']}"


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> str:
    if not url.startswith(("http://", "https://")):
        raise InputError("a webhook's address must be http or https", where="send")
    request = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return f"answered {answer.status}"
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (408, 425, 429) or error.code >= 500:
                raise TransientError(f"the webhook answered {error.code}") from error
            raise InputError(f"the webhook answered {error.code}", where="send") from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise TransientError(f"the webhook was not reached: {type(error).__name__}") from error


def _to_slack(destination: Destination, message: Message) -> str:
    url = _secret(destination, "url")
    assert url is not None
    text = f"*{message.title}*\n{message.summary}".replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _post(url, json.dumps({"text": text}).encode(), {"Content-Type": "application/json"})


def _to_webhook(destination: Destination, message: Message) -> str:
    form = _form(destination, "json")
    url = str(destination.get("url") or "") or _secret(destination, "url") or ""
    headers = {"Content-Type": CONTENT_TYPES[form], "Idempotency-Key": message.key}
    token = _secret(destination, "token")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    return _post(url, message.forms[form].encode(), headers)


SENDERS: dict[str, Callable[[Destination, Message], str]] = {
    "file": _to_file, "s3": _to_s3, "ses": _to_ses, "smtp": _to_smtp, "sns": _to_sns, "slack": _to_slack,
    "webhook": _to_webhook,
}  # fmt: skip
NEEDS: dict[str, tuple[str, ...]] = {
    "file": ("path",), "s3": ("bucket", "key"), "ses": ("from", "to"), "smtp": ("host", "from", "to"),
    "sns": ("topic_arn",), "slack": ("url_env",), "webhook": (),
}  # fmt: skip
REPEATABLE = frozenset({"file", "s3", "smtp", "webhook"})  # a repeat under the same key is recognised
