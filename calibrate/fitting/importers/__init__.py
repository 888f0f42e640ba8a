"""Published kernel tables into profiles: one file a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from catalogs.errors import InputError
from catalogs.schema import Gpu

Importer = Callable[[Path, Gpu | None], dict[str, Any]]
FRAMEWORKS = {"vllm": "vllm", "trtllm": "tensorrt-llm", "sglang": "sglang"}


def _aiconfigurator(folder: Path, gpu: Gpu | None) -> dict[str, Any]:
    from calibrate.fitting.importers import aiconfigurator

    files = aiconfigurator.table_files(folder)
    device, frames = aiconfigurator.read_frames(folder, gpu)
    backends = {p.parent.name.rpartition("-")[0] for p in files.values()} - {"nccl"}
    framework = FRAMEWORKS.get(next(iter(backends), ""), "")
    versions = dict(p.parent.name.rpartition("-")[::2] for p in files.values())
    return _document(device, frames, folder, "AIConfigurator kernel tables", framework, versions)


def _vidur(folder: Path, gpu: Gpu | None) -> dict[str, Any]:
    from calibrate.fitting.importers import vidur

    device, frames = vidur.read_frames(folder, gpu)
    return _document(device, frames, folder, "Vidur profiling tables", "", {})


def _llmservingsim(folder: Path, gpu: Gpu | None) -> dict[str, Any]:
    from calibrate.fitting.importers import llmservingsim
    from calibrate.profiles import profile_to_dict

    return profile_to_dict(llmservingsim.import_profile(folder))


def _document(
    gpu: Gpu, frames: Any, folder: Path, what: str, framework: str, versions: Mapping[str, str]
) -> dict[str, Any]:
    from calibrate.fitting.assembly import Origin, complete, donor_for, profile_document

    origin = Origin(
        name=f"{gpu.name.lower()}-{folder.resolve().name}",
        source=f"{what}, {folder.resolve().name}",
        as_of=date.today().isoformat(),
        framework=framework,
        versions=versions,
    )
    document = profile_document(gpu, frames, origin)
    donor = donor_for(gpu, framework)
    return complete(document, donor) if donor else document


IMPORTERS: dict[str, Importer] = {
    "aiconfigurator": _aiconfigurator,
    "llmservingsim": _llmservingsim,
    "vidur": _vidur,
}


def import_tables(form: str, folder: Path, gpu: Gpu | None = None) -> dict[str, Any]:
    """A profile document from a folder of published tables.

    Args:
        form: key of ``IMPORTERS``. folder: holds the tables. gpu: the measured device; None: as the tables say.

    Raises:
        InputError: unknown form; a column is missing or in another unit. MissingError: no tables.
    """
    importer = IMPORTERS.get(form)
    if importer is None:
        raise InputError(f"unknown format {form!r}", remedy=f"one of {', '.join(IMPORTERS)}")
    return importer(folder, gpu)
