"""`plan calibrate list`: the shipped profiles."""

from __future__ import annotations

import click

from app.cli.output import Table, emit, format_option


@click.command(name="list")
@format_option
def list(form: str) -> None:
    """The shipped profiles: what each rests on and how wrong its kernels are.

    \b
    Example:
      plan calibrate list
    """
    from calibrate.profiles import shipped_profiles

    columns = ("profile", "GPU", "framework", "rests on", "16-bit GEMM", "decode attention", "prefill attention")
    rows, documents = [], []
    for profile in shipped_profiles().values():
        medians = [
            profile.error.get(family, {}).get("bf16", {}).get("median")
            for family in ("gemm", "decode_attention", "prefill_attention")
        ]
        rests = f"carried over from {profile.carried_from}" if profile.carried_from else "fitted on kernel tables"
        rows.append([profile.name, profile.gpu, profile.framework or "any", rests, *medians])
        documents.append(
            {"name": profile.name, "gpu": profile.gpu, "framework": profile.framework, "source": profile.source}
            | {"method": profile.method, "as_of": profile.as_of, "error": profile.error}
        )
    notes = ["Errors are medians of |predicted / measured - 1| on kernels that the fit did not see."]
    emit(form, {"profiles": documents}, [Table("Shipped profiles", columns, rows)], notes)
