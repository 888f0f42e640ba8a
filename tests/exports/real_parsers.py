"""Fetches what really reads our exports: engines' own argument lists, SkyPilot, Karpenter's and KEDA's object forms.

Each is fetched once into a folder of the virtual environment, by pip and npm, in the versions pinned here. None can be
a dependency of the tests: SkyPilot pins a command-line and a server package below ours, the engines' wheels weigh
hundreds of megabytes (only their argument lists are kept), and Karpenter's and KEDA's forms are npm packages.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(sys.prefix) / "export-parsers"
SKYPILOT = "skypilot==0.14.1"
SKY_CATALOGUE = "v8"  # the form that this version reads
NPM_PACKAGES = ("typescript@5.9.3", "@kubernetes-models/karpenter@2.0.0", "@kubernetes-models/keda@2.0.0")
# package==version: the parts of its wheel that name its command line's flags and their choices
ENGINE_SOURCES: Mapping[str, Sequence[str]] = {
    "vllm==0.11.2": (
        "vllm/engine/arg_utils.py", "vllm/entrypoints/openai/cli_args.py", "vllm/config/",
        "vllm/model_executor/layers/quantization/__init__.py",
    ),
    "vllm==0.33.0": (
        "vllm/engine/arg_utils.py", "vllm/entrypoints/common/cli_args.py", "vllm/config/",
        "vllm/model_executor/layers/quantization/__init__.py",
    ),
    "sglang==0.5.5": ("sglang/srt/server_args.py",),
}  # fmt: skip


@dataclass
class CommandLine:
    """The flags of a program, as its own source or reference lists them."""

    flags: set[str] = field(default_factory=set)
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def faults(self, words: Sequence[str]) -> list[str]:
        """What this program would refuse in a command line."""
        found = []
        for word, following in zip(words, [*words[1:], ""], strict=True):
            if not word.startswith("--"):
                continue
            if word not in self.flags:
                found.append(f"no flag {word}")
            elif word in self.choices and following not in self.choices[word]:
                found.append(f"{word} {following}: one of {', '.join(self.choices[word])}")
        return found


def engine_command_line(requirement: str) -> CommandLine:
    """The flags of one engine in one version, read from the source in its wheel."""
    modules = [ast.parse(path.read_text()) for path in sorted(_engine_source(requirement).rglob("*.py"))]
    constants = {name: values for module in modules for name, values in _constants(module)}
    line = CommandLine()
    for module in modules:
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                _add_argument(line, node, constants)
            elif isinstance(node, ast.ClassDef) and node.name.endswith(
                "FrontendArgs"
            ):  # vLLM makes a flag of each field
                line.flags |= {
                    "--" + item.target.id.replace("_", "-")
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    if requirement.startswith("vllm"):  # its choices are types of configuration fields, its switches have a "no" form
        named = {"--quantization": "QuantizationMethods", "--kv-cache-dtype": "CacheDType", "--dtype": "ModelDType"}
        line.choices |= {flag: constants[name] for flag, name in named.items()}
        line.flags |= {"--no-" + flag.removeprefix("--") for flag in line.flags if flag.startswith("--enable-")}
    return line


def validate_kubernetes_objects(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """What Karpenter's and KEDA's published object forms say against some objects: unknown keys, types and values."""
    folder = _npm()
    typed = "".join(f"export const o{i}: I{o['kind']} = {json.dumps(o)};\n" for i, o in enumerate(objects))
    (folder / "objects.ts").write_text(_IMPORTS.format(kind="import type", prefix="I") + typed)
    (folder / "objects.mjs").write_text(_IMPORTS.format(kind="import", prefix="") + _VALIDATE)
    compiler = ["node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext",
                "--moduleResolution", "nodenext", "objects.ts"]  # fmt: skip
    keys = subprocess.run(compiler, cwd=folder, capture_output=True, text=True, check=False)
    values = subprocess.run(
        ["node", "objects.mjs"], cwd=folder, capture_output=True, text=True, check=True, input=json.dumps(objects)
    )
    return [line for line in (keys.stdout + values.stdout).splitlines() if line.strip()]


def validate_skypilot(document: str, instances: Sequence[Mapping[str, Any]]) -> list[str]:
    """What SkyPilot itself says against a YAML of services; its catalogue holds the instances given."""
    home = TOOLS / "sky-home"
    shutil.rmtree(home, ignore_errors=True)
    _sky_catalogue(home / ".sky" / "catalogs", instances)
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    ran = subprocess.run(
        [str(_sky_python()), "-c", _LOAD_TASKS], input=document, capture_output=True, text=True, check=False,
        env=environment, cwd=home,
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(ran.stderr or ran.stdout)
    return [line.removeprefix("refused: ") for line in ran.stdout.splitlines() if line.startswith("refused: ")]


_IMPORTS = (
    "{kind} {{{prefix}NodePool}} from '@kubernetes-models/karpenter/karpenter.sh/v1/NodePool';\n"
    "{kind} {{{prefix}ScaledObject}} from '@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject';\n"
)
_VALIDATE = """import {readFileSync} from 'node:fs';
const kinds = {NodePool, ScaledObject};
for (const o of JSON.parse(readFileSync(0))) {
  try { new kinds[o.kind](o).validate(); } catch (error) { console.log(o.kind + ': ' + error.message); }
}
"""
_LOAD_TASKS = """
import sys, yaml, sky
for document in yaml.safe_load_all(sys.stdin):
    try:
        task = sky.Task.from_yaml_config(document)
        for resources in task.resources:
            resources.validate()
    except Exception as error:
        print('refused:', type(error).__name__, str(error).replace(chr(10), ' '))
"""


def _engine_source(requirement: str) -> Path:
    folder = TOOLS / requirement.replace("==", "-")
    if not folder.exists():
        wheels = TOOLS / "wheels"
        _pip(sys.executable, "download", "--no-deps", "--dest", str(wheels), requirement)
        (wheel,) = wheels.glob("*.whl")
        parts = tuple(ENGINE_SOURCES[requirement])
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(parts) and n.endswith(".py")]
            archive.extractall(folder.with_suffix(".part"), names)
        folder.with_suffix(".part").rename(folder)
        shutil.rmtree(wheels)
    return folder


def _constants(module: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Module-level lists and ``Literal[...]`` types of strings."""
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value.slice if isinstance(node.value, ast.Subscript) else node.value
            if isinstance(value, ast.List | ast.Tuple):
                texts = [e.value for e in value.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
                yield node.targets[0].id, tuple(texts)


def _add_argument(line: CommandLine, call: ast.Call, constants: Mapping[str, tuple[str, ...]]) -> None:
    names = [a.value for a in call.args if isinstance(a, ast.Constant) and str(a.value).startswith("--")]
    line.flags |= set(map(str, names))
    for keyword in call.keywords:
        if keyword.arg == "choices":
            if isinstance(keyword.value, ast.List):
                texts = tuple(str(e.value) for e in keyword.value.elts if isinstance(e, ast.Constant))
            else:
                texts = constants.get(getattr(keyword.value, "id", ""), ())
            line.choices |= {str(name): texts for name in names if texts}


def _npm() -> Path:
    folder = TOOLS / "npm"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"type": "module"}')
        subprocess.run(
            ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error", *NPM_PACKAGES],
            cwd=folder, check=True,
        )  # fmt: skip
    return folder


def _sky_python() -> Path:
    python = TOOLS / "sky" / "bin" / "python"
    if not (TOOLS / "sky" / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(TOOLS / "sky")], check=True)
        _pip(str(python), "install", SKYPILOT)
        (TOOLS / "sky" / "done").touch()
    return python


def _pip(python: str, *words: str) -> None:
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", *words], check=True)


def _sky_catalogue(folder: Path, instances: Sequence[Mapping[str, Any]]) -> None:
    """The tables that SkyPilot fetches from its own site, here with these instances alone."""
    columns = ("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Price",
               "SpotPrice", "Region", "AvailabilityZone", "Arch")  # fmt: skip
    rows = [",".join(str(i.get(c, "")) for c in columns) for i in instances]
    names = sorted({str(i["AcceleratorName"]) for i in instances})
    tables = {
        "aws/vms.csv": [",".join(columns), *rows],
        "aws/images.csv": ["Tag,Region,OS,OSVersion,ImageId,CreationDate,BaseImageId"],
        "aws/instance_quota_mapping.csv": ["InstanceType,SpotInstanceCode,OnDemandInstanceCode"],
        "common/accelerators.csv": ["AcceleratorName,Clouds", *(f"{n},aws" for n in names)],
        "common/metadata.csv": ["GPU,MemoryGB,Manufacturer", *(f"{n},24,NVIDIA" for n in names)],
    }
    for name, lines in tables.items():
        path = folder / SKY_CATALOGUE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
