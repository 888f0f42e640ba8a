"""Bills from files: AWS CUR 2.0 and FOCUS 1.0 to 1.4, CSV (plain or gzipped) and Parquet, read in pieces.

Column meanings: AWS Data Exports "CUR 2.0 table dictionary" and the FOCUS specification (focus.finops.org).
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from catalogs.errors import InputError
from catalogs.load import instances
from planner.spend.bill import COLUMNS, Bill, amortise_capacity_blocks

PIECE_ROWS = 200_000
MAX_LINE_BYTES = 2**20
GPU_TYPE = re.compile(r"\b((?:p|g|gr)\d[a-z0-9-]*\.(?:metal(?:-\d+xl)?|\d*x?large|xlarge))\b")

FOCUS_COLUMNS = (
    "BilledCost", "EffectiveCost", "ListCost", "ContractedCost", "BillingCurrency", "ChargeCategory",
    "ChargeClass", "ChargeDescription", "ChargePeriodStart", "ChargePeriodEnd", "PricingCategory",
    "CommitmentDiscountId", "CommitmentDiscountCategory", "CommitmentDiscountType", "CommitmentDiscountStatus",
    "CapacityReservationId", "RegionId", "ResourceId", "ResourceType", "ServiceName", "SkuId", "SkuMeter",
    "SkuPriceDetails", "ConsumedQuantity", "ConsumedUnit", "Tags", "x_UsageType", "x_InstanceType", "x_Operation",
)  # fmt: skip
FOCUS_NEEDED = ("BilledCost", "EffectiveCost", "ChargeCategory", "ChargePeriodStart")
CUR_COLUMNS = (
    "line_item_usage_start_date", "line_item_usage_end_date", "line_item_line_item_type", "line_item_usage_type",
    "line_item_usage_amount", "line_item_unblended_cost", "line_item_currency_code", "line_item_resource_id",
    "line_item_line_item_description", "pricing_public_on_demand_cost", "pricing_unit", "product",
    "product_instance_type", "product_region_code", "product_region", "resource_tags",
    "reservation_reservation_a_r_n", "reservation_effective_cost",
    "reservation_unused_amortized_upfront_fee_for_billing_period", "reservation_unused_recurring_fee",
    "savings_plan_savings_plan_a_r_n", "savings_plan_savings_plan_effective_cost",
    "savings_plan_total_commitment_to_date", "savings_plan_used_commitment",
)  # fmt: skip
CUR_NEEDED = ("line_item_usage_start_date", "line_item_line_item_type", "line_item_unblended_cost")


def read_bill(path: str | Path, *, currency: str | None = None) -> Bill:
    """The GPU charges of a bill; the form is recognised by its columns.

    Args:
        path: a CUR 2.0 or FOCUS file, .csv, .csv.gz or .parquet.
        currency: take only charges in this currency; needed when the bill mixes two.

    Raises:
        InputError: unreadable, empty, neither form, two currencies, a value that is not a number or a time.
    """
    path = Path(path)
    names = _column_names(path)
    for needed, wanted, convert in ((FOCUS_NEEDED, FOCUS_COLUMNS, _from_focus), (CUR_NEEDED, CUR_COLUMNS, _from_cur)):
        if set(needed) <= set(names):
            return _read(path, [n for n in wanted if n in names], convert, currency, len(set(names) - set(wanted)))
    near = [n for n in (*FOCUS_NEEDED, *CUR_NEEDED) if n in names]
    raise InputError(
        "neither a CUR 2.0 nor a FOCUS bill", where=f"{path}:1", why=f"of their columns it has {near or 'none'}",
        remedy=f"a FOCUS export has {', '.join(FOCUS_NEEDED)}; CUR 2.0 has {', '.join(CUR_NEEDED)}",
    )  # fmt: skip


def _read(
    path: Path,
    columns: list[str],
    convert: Callable[[pd.DataFrame], pd.DataFrame],
    currency: str | None,
    num_unknown: int,
) -> Bill:
    kept, currencies, used, num_rows = [], dict[str, int](), dict[str, float](), 0
    for piece in _pieces(path, columns):
        num_rows += len(piece)
        piece.columns = pd.Index([str(c) for c in piece.columns])
        money = "BillingCurrency" if "BillingCurrency" in piece else "line_item_currency_code"
        if money in piece:
            for name, count in piece[money].dropna().value_counts().items():
                currencies[str(name)] = currencies.get(str(name), 0) + int(count)
            if currency is not None:
                piece = piece[piece[money] == currency]
        try:
            charges = convert(piece)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"a value cannot be read: {error}", where=str(path)) from error
        of_commitment = charges["purchase"].isin(["unused_commitment", "upfront_fee"]) & (
            charges["commitment_id"] != ""
        )
        chosen = charges[charges["instance_type"].notna() | of_commitment]
        if chosen["start"].isna().any():
            row = int(chosen.index[int(np.argmax(chosen["start"].isna()))]) + 2
            raise InputError(f"the charge in row {row} has no start", where=str(path), why="it belongs to no period")
        kept.append(chosen)
        for name, usd in _use_of_commitments(charges).items():
            used[name] = used.get(name, 0.0) + usd
    if num_rows == 0:
        raise InputError("the bill is empty", where=str(path))
    if len(currencies) > 1 and currency is None:
        counts = ", ".join(f"{n} rows in {name}" for name, n in sorted(currencies.items()))
        raise InputError(
            f"the bill mixes currencies: {counts}", where=str(path), why="their sums would mean nothing",
            remedy=f"--currency {max(currencies, key=lambda c: currencies[c])} takes that one alone",
        )  # fmt: skip
    charges, notes = _gpu_commitments_only(pd.concat(kept, ignore_index=True)[list(COLUMNS)], used)
    if num_unknown:
        notes.append(f"{num_unknown} columns of the bill were not needed")
    if charges.empty:
        notes.append("the bill holds no GPU machines")
    name = currency or next(iter(currencies), "USD")
    return amortise_capacity_blocks(Bill(charges, name, num_rows, tuple(notes)))


def _use_of_commitments(charges: pd.DataFrame) -> dict[str, float]:
    """The effective cost that each commitment covered, on machines with GPUs and without."""
    covered = charges[charges["purchase"].isin(["savings_plan", "reserved"]) & (charges["commitment_id"] != "")]
    return {str(name): float(usd) for name, usd in covered.groupby("commitment_id")["effective"].sum().items()}


def _gpu_commitments_only(charges: pd.DataFrame, used: Mapping[str, float]) -> tuple[pd.DataFrame, list[str]]:
    """Without the fees of commitments that covered no GPU machine; those shared with others count by GPUs' share.

    A fee names its commitment, not its machines: a Compute Savings Plan's unused part belongs to all that it covers.

    Args:
        charges: of GPU machines, and every fee of a commitment.
        used: effective cost that each commitment covered, over all machines.
    """
    machine = charges["instance_type"].notna()
    on_gpus = _use_of_commitments(charges[machine])
    kept = charges[machine | charges["commitment_id"].isin(set(charges.loc[machine, "commitment_id"]) - {""})]
    kept = kept.reset_index(drop=True)
    fees, notes = kept["instance_type"].isna(), []
    for name in kept.loc[fees, "commitment_id"].unique():
        share = on_gpus.get(name, 0.0) / used[name] if used.get(name) else 1.0
        if share < 1 - 1e-9:
            kept.loc[fees & (kept["commitment_id"] == name), ["billed", "effective"]] *= share
            notes.append(f"{share:.1%} of commitment {name} is used by GPU machines; so much of its fees counts here")
    return kept, notes


def _column_names(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if b"\n" not in (head := file.read(MAX_LINE_BYTES)) and len(head) == MAX_LINE_BYTES:
                raise InputError("its first line never ends: this is no bill", where=str(path))
        return list(pd.read_csv(path, nrows=0).columns)
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas' and Arrow's parse errors are ValueErrors
        raise InputError(
            f"cannot read the bill: {error}", where=str(path), remedy="a .csv, .csv.gz or .parquet"
        ) from error


def _pieces(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=columns):
                    yield batch.to_pandas(ignore_metadata=True)  # which is free text of whoever wrote the file
        else:
            with pd.read_csv(path, usecols=columns, chunksize=PIECE_ROWS, dtype=object) as reader:
                yield from reader
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read the bill: {error}", where=str(path)) from error


def _from_focus(rows: pd.DataFrame) -> pd.DataFrame:
    text = _texts(rows)
    category, pricing = text("ChargeCategory").str.lower(), text("PricingCategory").str.lower()
    status, kind = text("CommitmentDiscountStatus").str.lower(), text("CommitmentDiscountType").str.lower()
    usage_type = text("x_UsageType") + " " + text("ChargeDescription") + " " + text("SkuMeter")
    block = usage_type.str.contains("capacity ?block", case=False, regex=True)
    purchase = np.select(
        [category == "tax", category == "credit",
         (category == "adjustment") | (text("ChargeClass").str.lower() == "correction"),
         block, category == "purchase", status == "unused",
         (pricing == "committed") & kind.str.contains("reserv"), pricing == "committed",
         (pricing == "dynamic") | usage_type.str.contains("SpotUsage", case=False)],
        ["tax", "credit", "refund", "capacity_block", "upfront_fee", "unused_commitment", "reserved", "savings_plan",
         "spot"], default="on_demand",
    )  # fmt: skip
    hours = _numbers(rows, "ConsumedQuantity").where(text("ConsumedUnit").str.lower().str.startswith("h"))
    start = _times(rows, "ChargePeriodStart")
    details = text("x_InstanceType") + " " + text("SkuPriceDetails") + " " + usage_type + " " + text("ResourceType")
    return _charges(
        start=start, end=_times(rows, "ChargePeriodEnd").fillna(start), details=details, region=text("RegionId"),
        purchase=purchase, billed=_numbers(rows, "BilledCost").fillna(0.0),
        effective=_numbers(rows, "EffectiveCost").fillna(0.0), list_price=_numbers(rows, "ListCost"), hours=hours,
        resource_id=text("ResourceId"), commitment_id=text("CommitmentDiscountId"), tags=_maps(rows, "Tags"),
    )  # fmt: skip


def _from_cur(rows: pd.DataFrame) -> pd.DataFrame:
    text = _texts(rows)
    kind, usage_type = text("line_item_line_item_type"), text("line_item_usage_type")
    product = _maps(rows, "product")
    description = text("line_item_line_item_description")
    block = (usage_type + " " + description).str.contains("capacity ?block", case=False, regex=True)
    unblended = _numbers(rows, "line_item_unblended_cost").fillna(0.0)
    conditions = [
        kind == "Tax", kind.isin(["Credit", "EdpDiscount", "PrivateRateDiscount", "BundledDiscount"]), kind == "Refund",
        block, kind.isin(["SavingsPlanRecurringFee", "RIFee"]),
        kind.isin(["Fee", "SavingsPlanUpfrontFee", "SavingsPlanNegation"]), kind == "DiscountedUsage",
        kind == "SavingsPlanCoveredUsage", usage_type.str.contains("SpotUsage"),
    ]  # fmt: skip
    purchase = np.select(
        conditions,
        ["tax", "credit", "refund", "capacity_block", "unused_commitment", "upfront_fee", "reserved", "savings_plan",
         "spot"], default="on_demand",
    )  # fmt: skip
    committed = _numbers(rows, "savings_plan_total_commitment_to_date").fillna(0.0)
    unused_plan = committed - _numbers(rows, "savings_plan_used_commitment").fillna(0.0)
    unused_ri = _numbers(rows, "reservation_unused_amortized_upfront_fee_for_billing_period").fillna(0.0)
    unused_ri += _numbers(rows, "reservation_unused_recurring_fee").fillna(0.0)
    effective = np.select(
        [kind == "DiscountedUsage", kind == "SavingsPlanCoveredUsage", kind == "SavingsPlanRecurringFee",
         kind == "RIFee", purchase == "upfront_fee"],
        [_numbers(rows, "reservation_effective_cost").fillna(unblended),
         _numbers(rows, "savings_plan_savings_plan_effective_cost").fillna(unblended), unused_plan, unused_ri,
         pd.Series(0.0, rows.index)], default=unblended,
    )  # fmt: skip
    is_machine = usage_type.str.contains(r"(?:BoxUsage|SpotUsage|DedicatedUsage|HostUsage|CapacityBlock|Reservation)")
    hours = _numbers(rows, "line_item_usage_amount").where(
        is_machine & (kind.str.contains("Usage") | block) & (unblended >= 0)
    )
    hours = hours.where(~(block & (kind == "Fee")))
    start = _times(rows, "line_item_usage_start_date")
    region = text("product_region_code").where(text("product_region_code") != "", text("product_region"))
    region = region.where(
        region != "", pd.Series([p.get("region_code") or p.get("region") or "" for p in product], rows.index)
    )
    named = pd.Series([str(p.get("instance_type") or "") for p in product], rows.index)
    commitment = text("savings_plan_savings_plan_a_r_n")
    return _charges(
        start=start, end=_times(rows, "line_item_usage_end_date").fillna(start),
        details=text("product_instance_type") + " " + named + " " + usage_type + " " + description, region=region,
        purchase=purchase, billed=unblended, effective=pd.Series(effective, rows.index),
        list_price=_numbers(rows, "pricing_public_on_demand_cost"), hours=hours,
        resource_id=text("line_item_resource_id"),
        commitment_id=commitment.where(commitment != "", text("reservation_reservation_a_r_n")),
        tags=_maps(rows, "resource_tags"),
    )  # fmt: skip


def gpu_families() -> set[str]:
    """Families of AWS's machines with GPUs: ``g6e``."""
    return {name.split(".")[0] for name, found in instances().items() if found.cloud.lower() == "aws"}


def gpu_machine(text: str, families: Collection[str]) -> str | None:
    """The first machine of these families that a text names."""
    return next((m for m in GPU_TYPE.findall(text) if m.split(".")[0] in families), None)


def _charges(**columns: Any) -> pd.DataFrame:
    """The columns of ``Bill.charges``; the instance type is the first GPU machine that the details name."""
    families = gpu_families()
    details = columns.pop("details")
    by_text = {text: gpu_machine(text, families) for text in details.unique()}
    frame = pd.DataFrame({"list": columns.pop("list_price"), **columns}, index=details.index)
    frame["instance_type"] = details.map(by_text)
    return frame[list(COLUMNS)]


def _texts(rows: pd.DataFrame) -> Callable[[str], pd.Series[str]]:
    def text(name: str) -> pd.Series[str]:
        if name not in rows:
            return pd.Series("", rows.index, dtype=object)
        return rows[name].fillna("").astype(str)

    return text


def _numbers(rows: pd.DataFrame, name: str) -> pd.Series[float]:
    if name not in rows:
        return pd.Series(np.nan, rows.index, dtype=float)
    found = pd.to_numeric(rows[name], errors="coerce")
    bad = ~np.isfinite(found.astype(float)) & rows[name].notna() & (rows[name].astype(str).str.strip() != "")
    if bad.any():
        raise ValueError(
            f"{name} is {rows[name][bad].iloc[0]!r} in row {int(rows.index[int(np.argmax(bad))]) + 2}, not a number"
        )
    return found.astype(float)


def _times(rows: pd.DataFrame, name: str) -> pd.Series[Any]:
    if name not in rows:
        return pd.Series(pd.NaT, rows.index, dtype="datetime64[ns, UTC]")
    return pd.to_datetime(rows[name], utc=True, format="ISO8601").astype("datetime64[ns, UTC]")


def _maps(rows: pd.DataFrame, name: str) -> list[Mapping[str, Any]]:
    """A map column: Parquet's list of pairs, JSON text, or Python-like text."""
    if name not in rows:
        return [{}] * len(rows)
    return [_map(value) for value in rows[name]]


def _map(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        return {str(k): v for k, v in value}
    if not isinstance(value, str) or not value.strip():
        return {}
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, Mapping):
            return found
        if isinstance(found, (list, tuple)) and all(isinstance(p, (list, tuple)) and len(p) == 2 for p in found):
            return dict(found)
    return {}
