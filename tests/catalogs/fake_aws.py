"""A loopback server that speaks AWS's protocols for the calls that moto lacks or fakes.

Its payloads are written from botocore's service models, not recorded from AWS. Faults are queued by action: each
takes the place of one answer.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

EC2_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def xml(value: object) -> str:
    """A structure as EC2 writes it: lists as ``item`` elements."""
    if isinstance(value, dict):
        return "".join(f"<{k}>{xml(v)}</{k}>" for k, v in value.items())
    if isinstance(value, list):
        return "".join(f"<item>{xml(v)}</item>" for v in value)
    return escape(str(value))


class FakeAws:
    """Answers by action; ``faults[action]`` is a queue of throttle, denied, expired, malformed, slow, close."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0))).decode()
        target = request.headers.get("X-Amz-Target")
        if target:
            action, protocol, asked = target.split(".")[-1], "json", json.loads(body or "{}")
        elif "x-www-form-urlencoded" in request.headers.get("Content-Type", ""):
            asked = {k: v[0] for k, v in parse_qs(body).items()}
            action, protocol = asked["Action"], "ec2"
        else:
            action, protocol, asked = request.path.strip("/"), "rest", json.loads(body or "{}")
        self.calls.append((action, asked))
        self.headers.append(str(request.headers))
        fault = self.faults[action].pop(0) if self.faults[action] else ""
        if fault == "slow":
            time.sleep(1.0)
        if fault == "close":
            request.close_connection = True
            request.connection.close()
            return
        if fault == "malformed":
            self.reply(request, 200, "<html>a proxy's page", "text/html")
        elif fault in ("throttle", "denied", "expired"):
            self.refuse(request, protocol, fault)
        else:
            result = self.answers[action](asked)
            if protocol == "ec2":
                name = f"{action}Response"
                text = f'<{name} xmlns="{EC2_NAMESPACE}"><requestId>r</requestId>{xml(result)}</{name}>'
                self.reply(request, 200, text, "text/xml")
            else:
                self.reply(request, 200, json.dumps(result), "application/x-amz-json-1.1")

    def refuse(self, request: BaseHTTPRequestHandler, protocol: str, fault: str) -> None:
        code = {"throttle": "Throttling", "denied": "AccessDenied", "expired": "ExpiredToken"}[fault] + "Exception"
        if protocol == "ec2":
            name = {"throttle": "RequestLimitExceeded", "denied": "UnauthorizedOperation", "expired": "RequestExpired"}
            text = (
                f"<Response><Errors><Error><Code>{name[fault]}</Code><Message>no</Message></Error></Errors>"
                "<RequestID>r</RequestID></Response>"
            )
            self.reply(request, 503 if fault == "throttle" else 403, text, "text/xml")
        else:
            self.reply(request, 400, json.dumps({"__type": code, "message": "no"}), "application/x-amz-json-1.1",
                       {"x-amzn-ErrorType": code})  # fmt: skip

    def reply(
        self, request: BaseHTTPRequestHandler, status: int, text: str, kind: str, more: dict[str, str] | None = None
    ) -> None:
        data = text.encode()
        try:
            request.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(more or {})}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(data)
        except OSError:
            pass  # the client has gone


# Payloads


def product(instance: str, usd: float, region: str = "us-east-1", currency: str = "USD") -> str:
    """One entry of ``PriceList``: an instance with its on-demand term and two RI terms (all and no upfront)."""

    def dimension(unit: str, amount: float) -> dict[str, Any]:
        return {"unit": unit, "pricePerUnit": {currency: f"{amount:.10f}"}}

    def reserved(years: int, option: str, upfront: float, hourly: float) -> dict[str, Any]:
        dimensions = {"h": dimension("Hrs", hourly)} | ({"q": dimension("Quantity", upfront)} if upfront else {})
        attributes = {"LeaseContractLength": f"{years}yr", "OfferingClass": "standard", "PurchaseOption": option}
        return {"priceDimensions": dimensions, "termAttributes": attributes}

    return json.dumps({
        "product": {"attributes": {"instanceType": instance, "regionCode": region}},
        "serviceCode": "AmazonEC2",
        "terms": {
            "OnDemand": {"a": {"priceDimensions": {"b": dimension("Hrs", usd)}}},
            "Reserved": {
                "c": reserved(3, "All Upfront", usd * 0.4 * 26280, 0.0),
                "d": reserved(1, "No Upfront", 0.0, usd * 0.66),
            },
        },
    })  # fmt: skip


def offering_rate(instance: str, rate: float, years: int, option: str, currency: str = "USD") -> dict[str, Any]:
    """One entry of ``searchResults`` of the Savings Plans."""
    return {
        "savingsPlanOffering": {"offeringId": "o", "paymentOption": option, "planType": "EC2Instance",
                                "durationSeconds": years * 31_536_000, "currency": currency},
        "rate": str(rate), "unit": "Hrs", "productType": "EC2", "serviceCode": "AmazonEC2",
        "usageType": f"BoxUsage:{instance}", "operation": "RunInstances",
        "properties": [{"name": "region", "value": "us-east-1"}, {"name": "instanceType", "value": instance}],
    }  # fmt: skip


def spot_price(instance: str, zone: str, usd: float, at: str) -> dict[str, Any]:
    """One entry of the spot price history."""
    return {"instanceType": instance, "productDescription": "Linux/UNIX", "spotPrice": f"{usd:.6f}",
            "timestamp": at, "availabilityZone": zone}  # fmt: skip


def capacity_block(instance: str, fee: float, currency: str = "USD") -> dict[str, Any]:
    """One Capacity Block on offer: one instance for a day."""
    return {"capacityBlockOfferingId": "cb-1", "instanceType": instance, "availabilityZone": "us-east-1a",
            "instanceCount": 1, "startDate": "2026-12-01T11:30:00.000Z", "endDate": "2026-12-02T11:30:00.000Z",
            "capacityBlockDurationHours": 24, "upfrontFee": f"{fee:.2f}", "currencyCode": currency,
            "tenancy": "default"}  # fmt: skip
