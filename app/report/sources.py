"""What a report is made of: the flags of `plan report build`, or `report:` in a schedule file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from catalogs.yaml_source import Strict

COST_EXPLORER = "cost-explorer"


class Sources(Strict):
    """What a report is made of: the flags of `plan report build`, or `report:` in a schedule file."""

    bill: Path = Field(description="CUR 2.0 or FOCUS, .csv, .csv.gz or .parquet; or cost-explorer, to ask AWS")
    run: str | None = Field(None, description="a run of `plan recommend`: its id, or last")
    month: str | None = Field(None, description="YYYY-MM; left out: the month of the instant the report is for")
    budget_usd_per_month: float | None = Field(None, gt=0)
    busy: Path | None = Field(None, description="CSV of resource_id,busy_share: mean GPU busy share, 0 to 1")
    served_requests: float | None = Field(None, ge=0)
    served_output_tokens: float | None = Field(None, ge=0)
    currency: str | None = Field(None, description="take only charges in this currency")
    alternative: str | None = Field(None, description="a newer run of `plan recommend`: is it cheaper?")
    prometheus: str | None = Field(None, description="address of a Prometheus server: what was served, and drift")
    selector: str = Field("", description='PromQL label matchers of the service: namespace="prod"')
    framework: str | None = Field(None, description="vllm, sglang, tgi or tensorrt-llm; left out: the one found")
    model: str | None = Field(None, description="the served model, to predict step times; left out: the plan's")
    tag: str = Field("plan-model", description="the tag key that links machines to plans")
    title: str = "GPU cost"
