"""`plan prices refresh` against loopback servers: our own for what moto lacks (payloads written from botocore's models,
not recorded from AWS), moto's for instance types and zones. Sockets beyond loopback are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from app.cli.prices import prices
from catalogs import load
from catalogs.aws import FAMILIES, Request, differences, refresh
from catalogs.aws_session import Access
from catalogs.errors import InputError, MissingError
from catalogs.price_store import PriceStore, Quote
from tests.catalogs.fake_aws import FakeAws, capacity_block, offering_rate, product, spot_price
from tests.loopback import loopback_only

__all__ = ["loopback_only"]
SECRET = "wJalrXUtnFEMI-NOT-A-REAL-SECRET"
PRICE_FAMILIES = ("on_demand", "savings_plans", "spot", "capacity_blocks")


@pytest.fixture(autouse=True)
def _signed_in(monkeypatch: pytest.MonkeyPatch, loopback_only: list[str], tmp_path: Path) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("PLAN_PRICES_DB", str(tmp_path / "prices.sqlite"))
    load.forget()
    yield
    monkeypatch.undo()
    load.forget()
    assert loopback_only == []


@pytest.fixture
def fake() -> Iterator[FakeAws]:
    """Two pages of each paged call; g6e.xlarge costs 1.50 now (the snapshot says 1.861)."""
    server = FakeAws()

    def products(asked: dict[str, Any]) -> dict[str, Any]:
        if not asked.get("NextToken"):
            return {"FormatVersion": "aws_v1", "PriceList": [product("g6e.xlarge", 1.5), product("x1.metal", 9.0)],
                    "NextToken": "2"}  # fmt: skip
        return {"FormatVersion": "aws_v1", "PriceList": [product("p5.48xlarge", 55.04)]}

    def rates(asked: dict[str, Any]) -> dict[str, Any]:
        if not asked.get("nextToken"):
            return {"searchResults": [offering_rate("g6e.xlarge", 0.55, 3, "All Upfront")], "nextToken": "2"}
        return {"searchResults": [offering_rate("g6e.xlarge", 0.95, 1, "No Upfront")]}

    def spots(asked: dict[str, Any]) -> dict[str, Any]:
        if not asked.get("NextToken"):
            rows = [spot_price("g6e.xlarge", "us-east-1a", 0.9, "2026-11-20T10:00:00.000Z"),
                    spot_price("g6e.xlarge", "us-east-1a", 0.7, "2026-11-22T10:00:00.000Z")]  # fmt: skip
            return {"spotPriceHistorySet": rows, "nextToken": "2"}
        return {"spotPriceHistorySet": [spot_price("g6e.xlarge", "us-east-1b", 0.8, "2026-11-21T10:00:00.000Z")]}

    server.answers = {
        "GetProducts": products,
        "DescribeSavingsPlansOfferingRates": rates,
        "DescribeSpotPriceHistory": spots,
        "DescribeCapacityBlockOfferings": lambda asked: {
            "capacityBlockOfferingSet": [capacity_block(asked["InstanceType"], 960.0)]
            if asked["InstanceType"] == "p5.48xlarge"
            else []
        },
        "GetSpotPlacementScores": lambda asked: {
            "spotPlacementScoreSet": [{"region": "us-east-1", "availabilityZoneId": "use1-az1", "score": 9}]
        },
        "ListServiceQuotas": lambda asked: {
            "Quotas": [
                {"QuotaName": "Running On-Demand P instances", "QuotaCode": "L-417A185B", "Value": 192.0},
                {"QuotaName": "EC2-VPC Elastic IPs", "QuotaCode": "L-0263D0A3", "Value": 5.0},
            ]
        },
    }
    yield server
    server.close()


def fetch(fake: FakeAws, *only: str, attempts: int = 3, timeout_s: float = 5.0) -> tuple[Any, PriceStore]:
    store = PriceStore()
    result = refresh(Request(["us-east-1"], only), Access(None, fake.url, timeout_s, attempts), store)
    return result, store


def missing(result: Any) -> list[tuple[str, str]]:
    return [(m["what"], m["kind"]) for m in result.missing]


def price(instance: str, purchase: str) -> float:
    found = load.price_of(instance, "us-east-1", purchase)
    assert found is not None
    return found.usd_per_hour


def test_every_price_family_is_fetched_through_its_pages_and_takes_effect(fake: FakeAws) -> None:
    assert price("g6e.xlarge", "on_demand") == 1.861
    result, _ = fetch(fake, *PRICE_FAMILIES)
    assert result.missing == []
    assert price("g6e.xlarge", "on_demand") == 1.5
    assert price("p5.48xlarge", "capacity_block") == 40.0  # 960 / 24
    assert price("g6e.xlarge", "spot") == pytest.approx(0.75)  # median of the zones' newest: 0.7 and 0.8
    assert price("g6e.xlarge", "reserved_3yr") == 0.55  # the Savings Plan beats the RI's 1.5 x 0.4 = 0.60
    assert price("g6e.xlarge", "reserved_1yr") == 0.95
    found = load.price_of("g6e.xlarge", "us-east-1", "on_demand")
    assert found is not None
    assert "fetched" in found.source


def test_an_upfront_fee_is_spread_over_every_hour_of_its_term(fake: FakeAws) -> None:
    _, store = fetch(fake, "on_demand")
    quotes = {(q.instance, q.terms): q for q in store.quotes()}
    all_upfront = quotes["g6e.xlarge", "RI standard, All Upfront"]
    assert all_upfront.usd_per_hour == pytest.approx(0.6)
    assert all_upfront.upfront_usd == pytest.approx(0.6 * 3 * 8760)


def test_filters_ask_for_linux_on_shared_tenancy(fake: FakeAws) -> None:
    fetch(fake, "on_demand")
    asked = {f["Field"]: f["Value"] for f in fake.calls[0][1]["Filters"]}
    assert asked["operatingSystem"] == "Linux"
    assert asked["preInstalledSw"] == "NA"
    assert asked["tenancy"] == "Shared"


def test_supply_facts_are_kept(fake: FakeAws) -> None:
    result, store = fetch(fake, "quotas", "placement_scores")
    assert [f.name for f in store.facts("quota")] == ["Running On-Demand P instances"]
    assert len(store.facts("placement_score")) == 10  # AWS allows ten questions a day
    assert missing(result) == [("placement_scores", "other")]
    assert "not asked for" in result.missing[0]["why"]


def test_a_full_refresh_keeps_within_the_days_placement_questions(fake: FakeAws) -> None:
    fake.answers |= {"DescribeInstanceTypes": lambda _: {"instanceTypeSet": []},
                     "DescribeInstanceTypeOfferings": lambda _: {"instanceTypeOfferingSet": []}}  # fmt: skip
    result, _ = fetch(fake)
    assert result.missing == []
    assert "placement scores were not asked for" in result.notes[0]
    assert "GetSpotPlacementScores" not in {action for action, _ in fake.calls}
    narrowed = refresh(Request(["us-east-1"], (), ["g6e.xlarge"]), Access(None, fake.url), PriceStore())
    assert narrowed.notes == []
    assert narrowed.fetched["placement_scores us-east-1"] == 1


def test_throttling_is_waited_out(fake: FakeAws) -> None:
    fake.faults["GetProducts"] = ["throttle"]
    result, _ = fetch(fake, "on_demand")
    assert result.missing == []
    assert price("g6e.xlarge", "on_demand") == 1.5


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("throttle", "throttled"),
        ("denied", "denied"),
        ("malformed", "malformed"),
        ("slow", "slow"),
        ("close", "offline"),
    ],
)
@pytest.mark.parametrize("action", ["GetProducts", "DescribeSpotPriceHistory", "DescribeSavingsPlansOfferingRates"])
def test_a_failure_in_one_family_is_named_and_leaves_the_others(
    fake: FakeAws, action: str, fault: str, kind: str
) -> None:
    family = {"GetProducts": "on_demand", "DescribeSpotPriceHistory": "spot",
              "DescribeSavingsPlansOfferingRates": "savings_plans"}[action]  # fmt: skip
    fake.faults[action] = [fault] * 9
    result, _ = fetch(fake, *PRICE_FAMILIES, attempts=1, timeout_s=0.3)
    assert missing(result) == [(family, kind)]
    assert len(result.fetched) == 3
    if kind == "denied":
        assert FAMILIES[family][0] in result.missing[0]["why"]


def test_pages_before_a_failure_are_kept(fake: FakeAws) -> None:
    pages = fake.answers["GetProducts"]

    def then_malformed(asked: dict[str, Any]) -> dict[str, Any]:
        return pages(asked) if not asked.get("NextToken") else {"PriceList": ["{not json"]}

    fake.answers["GetProducts"] = then_malformed
    result, _ = fetch(fake, "on_demand")
    assert missing(result) == [("on_demand", "malformed")]
    assert price("g6e.xlarge", "on_demand") == 1.5
    assert price("p5.48xlarge", "on_demand") == 55.04  # the catalogue's


def test_spot_prices_seen_before_a_failure_are_dated_now(fake: FakeAws) -> None:
    pages = fake.answers["DescribeSpotPriceHistory"]
    fake.answers["DescribeSpotPriceHistory"] = lambda asked: pages(asked) if not asked.get("NextToken") else {"x": 1}
    result, _ = fetch(fake, "spot")
    assert price("g6e.xlarge", "spot") == 0.7
    assert result.fetched == {"spot us-east-1": 3}


def test_expired_credentials_stop_the_refresh_and_are_said(fake: FakeAws) -> None:
    fake.faults["GetProducts"] = ["expired"] * 9
    with pytest.raises(MissingError, match="expired"):
        fetch(fake, attempts=1)
    assert {action for action, _ in fake.calls} == {"GetProducts"}


def test_credentials_that_expire_midway_keep_what_came_before(fake: FakeAws) -> None:
    fake.faults["DescribeSpotPriceHistory"] = ["expired"]
    result, _ = fetch(fake, *PRICE_FAMILIES)
    assert missing(result) == [("spot", "credentials"), ("capacity_blocks", "credentials")]
    assert price("g6e.xlarge", "on_demand") == 1.5


def test_no_credentials_is_missing_data(fake: FakeAws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(MissingError, match="no AWS credentials") as caught:
        fetch(fake)
    assert caught.value.exit_code == 3


def test_an_unknown_profile_is_missing_data(fake: FakeAws) -> None:
    with pytest.raises(MissingError, match="nobody"):
        refresh(Request(["us-east-1"]), Access("nobody", fake.url), PriceStore())


def test_offline_is_said_and_the_catalogue_stays(tmp_path: Path) -> None:
    result = refresh(Request(["us-east-1"], ["on_demand"]), Access(None, "http://127.0.0.1:9", 0.3, 1), PriceStore())
    assert missing(result) == [("on_demand", "offline")]
    assert price("g6e.xlarge", "on_demand") == 1.861


@pytest.mark.parametrize(
    ("request_", "near"),
    [(Request(["us-esat-1"]), "us-east-1"), (Request(["us-east-1"], ["spott"]), "spot"),
     (Request(["us-east-1"], (), ["g6e.xlage"]), "g6e.xlarge")],
)  # fmt: skip
def test_a_wrong_region_family_or_type_is_refused_before_any_call(fake: FakeAws, request_: Request, near: str) -> None:
    with pytest.raises(InputError, match=near):
        refresh(request_, Access(None, fake.url), PriceStore())
    assert fake.calls == []


@pytest.mark.parametrize(
    "action", ["GetProducts", "DescribeSavingsPlansOfferingRates", "DescribeCapacityBlockOfferings"]
)
def test_a_price_in_another_currency_is_not_taken_for_dollars(fake: FakeAws, action: str) -> None:
    fake.answers["GetProducts"] = lambda _: {"PriceList": [product("g6e.xlarge", 9.0, currency="CNY")]}
    fake.answers["DescribeSavingsPlansOfferingRates"] = lambda _: {
        "searchResults": [offering_rate("g6e.xlarge", 9.0, 3, "All Upfront", "EUR")]
    }
    fake.answers["DescribeCapacityBlockOfferings"] = lambda asked: {
        "capacityBlockOfferingSet": [capacity_block(asked["InstanceType"], 9.0, "EUR")]
    }
    family = next(name for name, (iam, _) in FAMILIES.items() if iam.endswith(action))
    result, store = fetch(fake, family)
    assert missing(result) == [(family, "malformed")]
    assert store.quotes() == []


def test_nothing_secret_is_kept_or_said(fake: FakeAws, capfd: pytest.CaptureFixture[str]) -> None:
    fake.faults["GetProducts"] = ["denied"]
    result, store = fetch(fake, "on_demand", "spot")
    written = store.path.read_bytes()
    said = json.dumps(result.missing) + "".join(capfd.readouterr())
    for secret in (SECRET, "AKIAEXAMPLE"):
        assert secret.encode() not in written
        assert secret not in said


def test_history_is_kept_and_diff_says_what_moved(fake: FakeAws) -> None:
    fetch(fake, "on_demand")
    fake.answers["GetProducts"] = lambda _: {"PriceList": [product("g6e.xlarge", 1.2)]}
    _, store = fetch(fake, "on_demand")
    since_snapshot = {(c.instance, c.purchase): c for c in differences(store)}
    moved = since_snapshot["g6e.xlarge", "on_demand"]
    assert (moved.before_usd_per_hour, moved.after_usd_per_hour) == (1.861, 1.2)
    assert ("p5.48xlarge", "on_demand") not in since_snapshot  # the same price is no change
    last = differences(store, str(store.refreshes()[0]["started_at"]))
    (change,) = [c for c in last if c.instance == "g6e.xlarge" and c.purchase == "on_demand"]
    assert (change.before_usd_per_hour, change.after_usd_per_hour) == (1.5, 1.2)
    assert change.ratio == pytest.approx(-0.2)


def test_an_older_fetched_price_does_not_displace_a_newer_one_of_the_catalogue() -> None:
    store = PriceStore()
    store.add_quotes(store.begin(["us-east-1"]), [
        Quote("g6e.xlarge", "us-east-1", "on_demand", 9.9, "AWS Price List", "2026-01-01T00:00:00+00:00")
    ])  # fmt: skip
    load.forget()
    assert price("g6e.xlarge", "on_demand") == 1.861


def test_a_file_that_is_no_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prices.sqlite"
    path.write_text("these are not prices, whatever the name says; " * 99)
    with pytest.raises(InputError, match="not a price store"):
        load.prices()


def test_a_store_where_none_can_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingError, match="cannot open the price store"):
        PriceStore(tmp_path / "file" / "prices.sqlite").begin(["us-east-1"])


def test_the_spot_advisor_is_read_from_a_file_and_an_address(fake: FakeAws, tmp_path: Path) -> None:
    advisor = tmp_path / "advisor.json"
    advisor.write_text(json.dumps({"spot_advisor": {"us-east-1": {"Linux": {"g6e.xlarge": {"s": 62, "r": 1}}}}}))
    store = PriceStore()
    request = Request(["us-east-1"], ["quotas"], spot_advisor=str(advisor))
    result = refresh(request, Access(None, fake.url), store)
    assert result.missing == []
    (fact,) = store.facts("spot_advisor")
    assert fact.value == {"saving": 0.62, "interruption": "5-10%"}
    gone = refresh(
        Request(["us-east-1"], ["quotas"], spot_advisor="http://127.0.0.1:9/x.json"), Access(None, fake.url), store
    )
    assert missing(gone) == [("spot_advisor", "other")]
    advisor.write_text('{"spot_advisor": {"us-east-1": {"Linux": {"g6e.xlarge": {"s": "many"}}}}}')
    with pytest.raises(InputError, match="Spot Advisor"):
        refresh(request, Access(None, fake.url), store)


def test_the_command_refreshes_shows_and_compares(fake: FakeAws) -> None:
    runner = CliRunner()
    done = runner.invoke(
        prices, ["refresh", "--endpoint-url", fake.url, "--only", "on_demand,spot", "--format", "json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing"] == []
    changed = runner.invoke(prices, ["diff", "--format", "json"], catch_exceptions=False)
    assert "g6e.xlarge" in {c["instance"] for c in json.loads(changed.stdout)["changes"]}
    shown = runner.invoke(prices, ["show", "--zones", "--purchase", "spot", "--format", "json"], catch_exceptions=False)
    assert [p["notes"] for p in json.loads(shown.stdout)["prices"]] == ["us-east-1a", "us-east-1b"]


def test_supply_is_shown_and_missing_before_any_refresh(fake: FakeAws) -> None:
    with pytest.raises(MissingError, match="nothing was fetched"):
        CliRunner().invoke(prices, ["supply"], catch_exceptions=False)
    fetch(fake, "quotas")
    shown = CliRunner().invoke(prices, ["supply", "--kind", "quota", "--format", "json"], catch_exceptions=False)
    assert [f["value"]["vcpus"] for f in json.loads(shown.stdout)["facts"]] == [192.0]


def test_the_command_exits_with_missing_data_when_a_family_failed(fake: FakeAws) -> None:
    fake.faults["DescribeSpotPriceHistory"] = ["denied"]
    done = CliRunner().invoke(prices, ["refresh", "--endpoint-url", fake.url, "--only", "on_demand,spot"])
    assert isinstance(done.exception, MissingError)
    assert "ec2:DescribeSpotPriceHistory" in done.stdout


def test_diff_before_any_refresh_says_what_to_do() -> None:
    with pytest.raises(MissingError, match="nothing was fetched"):
        CliRunner().invoke(prices, ["diff"], catch_exceptions=False)


def test_moto_answers_instance_types_and_zones() -> None:
    """moto's own instance catalogue: 1,395 types, of which the GPU ones agree with ours."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = PriceStore()
        result = refresh(
            Request(["us-east-1"], ["instance_types", "zone_offerings"]), Access(None, f"http://{host}:{port}"), store
        )
    finally:
        server.stop()
    assert result.missing == []
    types = {f.name: f.value for f in store.facts("instance_type")}
    for name in ("g6e.12xlarge", "p5.48xlarge", "g6.xlarge"):
        assert types[name]["num_gpus"] == load.instances()[name].num_gpus
        assert types[name]["num_vcpus"] == load.instances()[name].num_vcpus
    assert {f.zone for f in store.facts("zone_offering") if f.name == "g6e.xlarge"} >= {"us-east-1a"}


def test_the_documented_policy_allows_every_call_and_no_more() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "prices.md").read_text()
    policy = json.loads(docs[docs.index("```json") + 7 : docs.index("```", docs.index("```json") + 7)])
    explorer = (load.DATA / "aws_bill.py").read_text()
    allowed = set(policy["Statement"][0]["Action"])
    assert {action for action, _ in FAMILIES.values()} <= allowed
    assert all(f'"{action}"' in explorer for action in allowed if action.startswith("ce:"))
    assert allowed - {a for a in allowed if a.startswith("ce:")} == {action for action, _ in FAMILIES.values()}
