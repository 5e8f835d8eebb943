"""Runs every benchmark, with the peers that can be installed, and writes benchmarks/RESULTS.md.

    TFDS_DATA_DIR=... python benchmarks/run_all.py          # 70 minutes on two quiet cores
    python benchmarks/run_all.py --quick                    # does everything run? No figures
    python benchmarks/run_all.py --only sparse units        # these sections anew, the others stay
    python benchmarks/run_all.py --missing                  # goes on where a run was stopped
    python benchmarks/run_all.py --fill README.md           # figures of RESULTS.md into its tables

Each benchmark is a process of its own, one after the other, from the Python that runs this script,
which needs requirements.txt (`scaling`, which runs only where it is named, also distributed). A
benchmark that measures another package in its own process gets an environment that adds that
package to this Python's; the peers, which get the same networks and images as arrays (`peers/`),
have environments that hold nothing else. Environments are made once, in the folder --peers, by
pip. What each process printed is kept in results/benchmarks/, and RESULTS.md is written from
there, whole, after each of them; sections that are not there stay as RESULTS.md has them.

A benchmark that fails, or a package that cannot be installed, is said in its section with the
reason, and the others go on; the exit code is 1 then. A quick run keeps its outputs apart and
writes results/benchmarks-quick/RESULTS.md (or --output), so that it never replaces figures.
"""

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import signal
import site
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
SHOWN_PACKAGES = (
    "keras tf-keras tensorflow tensorflow-cpu torch numpy scipy numba keras-hub onnxruntime "
    "openvino ai-edge-litert tensorflow-model-optimization torch-pruning pquant-ml kerassurgeon "
    "sparse-dot-mkl distributed"
).split()


FIELDS = set(  # of a section
    "command date machine load note missing output seconds processor_seconds failed "
    "versions".split()
)


@dataclass(frozen=True)
class Environment:
    """What pip installs, a group after the other, beside this Python's packages or alone."""

    groups: tuple[str, ...]
    alone: bool = True


ENVIRONMENTS = {
    "selections": Environment(("torch", "tensorflow-model-optimization tf-keras"), alone=False),
    "removal": Environment(("torch", "torch-pruning"), alone=False),
    "mkl": Environment(("sparse-dot-mkl mkl",), alone=False),
    "formats": Environment(("onnxruntime tf2onnx", "openvino"), alone=False),
    "hub": Environment(("keras-hub",), alone=False),
    "tfmot": Environment(("tensorflow tf-keras tensorflow-model-optimization",)),
    "torch_prune": Environment(("torch", "numpy")),
    "torch_pruning": Environment(("torch", "numpy torch-pruning")),
    "pquant": Environment(("pquant-ml[tensorflow]",)),
    # Its pins (pandas below 2, pillow below 8) have no wheels for this Python.
    "keras_surgeon": Environment(
        ("tensorflow tf-keras importlib-metadata<2", "--no-deps kerassurgeon")
    ),
}


@dataclass(frozen=True)
class Benchmark:
    """A section: the script with the options of a full and of a quick run."""

    name: str
    script: str
    full: str = ""
    quick: str = ""
    environment: str = ""  # one of ENVIRONMENTS; else this Python
    note: str = ""
    apart: bool = False  # runs only where it is named


def peer(name: str) -> Benchmark:
    options = "--task {folder}/task.npz --results {folder}/" + name + ".json"
    script, environment = f"peers/with_{name}.py", name if name in ENVIRONMENTS else ""
    return Benchmark(f"peers_{name}", script, options, f"{options} --quick", environment)


RUN = [
    Benchmark("figures", "figures.py", "", "--quick", note="It draws the pictures in images/."),
    Benchmark(
        "five_seeds",
        "five_seeds.py",
        "--table",
        "--table",
        note="Not part of the run, which it would prolong by an hour: the table is made from the "
        "CSV file in the repository, which `python benchmarks/five_seeds.py` writes.",
    ),
    Benchmark("sweep", "sweep.py", "--repeats 3", "--repeats 1"),
    Benchmark("masks", "masks.py", "--repeats 5", "--repeats 1", "selections"),
    Benchmark("sparse", "sparse.py", "--repeats 5", "--repeats 1 --batches 16", "mkl"),
    Benchmark(
        "sparse_conv_layer",
        "sparse_conv.py",
        "layer --repeats 5",
        "layer --repeats 1 --batches 1 --sparsities 0.9",
    ),
    Benchmark(
        "sparse_conv_networks",
        "sparse_conv.py",
        "networks --networks small:28 ResNet50:64 VGG16:64 MobileNetV2:96 --repeats 5",
        "networks --networks small:28 --batches 1 --sparsities 0.9 --repeats 1",
        "formats",
    ),
    Benchmark("units", "units.py", "--repeats 7", "--repeats 1", "removal"),
    Benchmark(
        "export",
        "export.py",
        "--networks dense --repeats 20",
        "--networks dense --sparsities 0 0.9 --repeats 1",
        "formats",
    ),
    Benchmark(
        "reconstruct",
        "reconstruct.py",
        "--networks 1 --kinds dense",
        "--networks 1 --kinds residual --sparsities 0.5",
    ),
    Benchmark("finetune", "finetune.py", "--turns 9", "--turns 1", "selections"),
    Benchmark("lenet_300_100", "lenet_300_100.py", "--seeds 1", "--seeds 1 --epochs 1"),
    Benchmark("defaults", "defaults.py", "--seeds 1", "--seeds 1"),
    Benchmark("families", "families.py", "", "ViTBackbone MobileNet", "hub"),
    Benchmark("panel", "panel.py", "--repeats 3", "--repeats 1 --data digits"),
    Benchmark("peers_task", "peers/make_task.py", "{folder}/task.npz", "{folder}/task.npz --quick"),
    *map(
        peer,
        ("keras_pruning", "tfmot", "torch_prune", "torch_pruning", "pquant", "keras_surgeon"),
    ),
    Benchmark("peers", "peers/table.py", "{folder}", "{folder}"),
    Benchmark(
        "scaling",
        "scaling.py",
        "--repeats 3",
        "--trainings 2 --repeats 1",
        note="Not part of the run: it takes eight minutes. `--only scaling` runs it.",
        apart=True,
    ),
]


def main() -> int:
    names = [benchmark.name for benchmark in RUN]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME")
    parser.add_argument("--skip", nargs="+", default=[], choices=names, metavar="NAME")
    parser.add_argument("--missing", action="store_true", help="only those without a result")
    parser.add_argument("--quick", action="store_true", help="short versions of all")
    parser.add_argument(
        "--fill", nargs="+", type=Path, metavar="FILE", help="run nothing, see above"
    )
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    default = Path.home() / ".cache" / "keras_pruning_peers"
    parser.add_argument("--peers", type=Path, default=default, help="folder of environments")
    parser.add_argument("--output", type=Path, help="default: RESULTS.md, see above")
    parser.add_argument("--minutes", type=float, default=20, help="at most, a benchmark")
    options = parser.parse_args()
    folder = ROOT / "results" / ("benchmarks-quick" if options.quick else "benchmarks")
    default = folder if options.quick else BENCHMARKS
    output = options.output or default / "RESULTS.md"
    if options.list:
        print("\n".join(names))
        return 0
    if options.fill:
        for path in options.fill:
            replace(path, filled(path.read_text("utf-8"), output.read_text("utf-8")))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    wanted = options.only or [b.name for b in RUN if options.quick or not b.apart]
    wanted = [name for name in wanted if name not in options.skip]
    for benchmark in RUN:
        done = read(folder, benchmark)
        missing = not done or done["failed"]
        if benchmark.name not in wanted or (options.missing and not missing):
            continue
        print(f"{benchmark.name} ...", end=" ", flush=True)
        section = run(benchmark, folder, options)
        replace(folder / f"section-{benchmark.name}.json", json.dumps(section, indent=1))
        print(section["failed"] or f"{section['seconds']:.0f} s", flush=True)
        replace(output, render(folder, output, options.quick))
    sections = [read(folder, benchmark) for benchmark in RUN if benchmark.name in wanted]
    return int(any(section is None or section["failed"] for section in sections))


# One benchmark


def run(benchmark: Benchmark, folder: Path, options: argparse.Namespace) -> dict:
    """What RESULTS.md says of it; `failed` is the reason, or empty."""
    arguments = benchmark.quick if options.quick else benchmark.full
    command = [f"benchmarks/{benchmark.script}", *shlex.split(arguments.format(folder=folder))]
    section = {
        "name": benchmark.name,
        "command": without_paths(shlex.join(["python", *command])),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "load": os.getloadavg()[0],
        "note": benchmark.note,
        "missing": [],
        "output": "",
        "seconds": 0.0,
        "processor_seconds": 0.0,
    }
    old = folder / f"{benchmark.name.removeprefix('peers_')}.json"
    old.unlink(missing_ok=True)  # of a peer, for the table: not to be taken for this run's
    python = sys.executable
    if benchmark.environment:
        environment = ENVIRONMENTS[benchmark.environment]
        python, missing = prepared(benchmark.environment, environment, options.peers)
        section["missing"] = missing
        if missing and environment.alone:
            return section | {"failed": "not installed", "versions": versions(python)}
    section["versions"] = versions(python)
    variables = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    start, before = time.perf_counter(), os.times()
    process = subprocess.Popen(
        [python, *command],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    # Bytes, since as text the returns of progress lines would become new lines.
    try:
        printed, errors = process.communicate(timeout=60 * options.minutes)
        failed = f"exit code {process.returncode}: {last_line(errors.decode(errors='replace'))}"
        failed = failed if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its session: what it started goes too
        printed, errors = process.communicate()
        failed = f"stopped after {options.minutes:g} minutes"
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    (folder / f"{benchmark.name}.stderr").write_bytes(errors)
    seconds, after = time.perf_counter() - start, os.times()
    section["processor_seconds"] = sum(after[2:4]) - sum(before[2:4])  # of the child, both kinds
    return section | {
        "output": as_shown(printed.decode(errors="replace")),
        "failed": failed,
        "seconds": seconds,
    }


def last_line(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    return without_paths(lines[-1].strip())[:300] if lines else "no message"


def as_shown(printed: str) -> str:
    """Without paths and without what a progress line overwrote."""
    lines = [line.rstrip().split("\r")[-1] for line in printed.split("\n")]
    return without_paths("\n".join(lines)).strip("\n")


def without_paths(text: str) -> str:
    """The last part of absolute paths alone: the others name a machine or a person."""
    return re.sub(r"(?<![\w.:/~-])/(?:[\w.+@-]+/)+", "", text)


# Environments


def prepared(name: str, environment: Environment, folder: Path) -> tuple[str, list[str]]:
    """Returns the Python of the environment, made if need be, and what could not be installed."""
    place = folder / name
    python = str(place / "bin" / "python")
    record = place / "installed.json"
    if record.exists():
        kept = json.loads(record.read_text())
        if kept["groups"] == list(environment.groups):
            return python, kept["missing"]
    print(f"(environment {name})", end=" ", flush=True)
    venv.create(place, with_pip=True, clear=True)
    if not environment.alone:
        command = [python, "-c", "import site; print(site.getsitepackages()[0])"]
        packages = Path(subprocess.check_output(command, text=True).strip())
        (packages / "this_python.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    missing = []
    for group in environment.groups:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if group == "torch":  # a build for the CPU where pip is set up with one
            cpu = [*pip, "--no-index", "--no-deps", "torch"]
            subprocess.run(cpu, capture_output=True, check=False)
        done = subprocess.run([*pip, *group.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            reason = without_paths(errors[0])[:200] if errors else last_line(done.stderr)
            missing.append(f"{group}: {reason}")
    record.write_text(json.dumps({"groups": environment.groups, "missing": missing}))
    return python, missing


def versions(python: str) -> dict[str, str]:
    """Of Python and of those packages that its environment has."""
    code = (
        "import json, platform, sys\nfrom importlib import metadata\n"
        "found = {'Python': platform.python_version()}\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        found[name] = metadata.version(name)\n"
        "    except metadata.PackageNotFoundError:\n        pass\n"
        "print(json.dumps(found))"
    )
    return json.loads(subprocess.check_output([python, "-c", code, *SHOWN_PACKAGES], text=True))


# The document


def machine() -> dict[str, str]:
    """What times depend on; nothing that names the machine."""
    name, flags = platform.machine(), set()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*: (.+)", text, re.M)
        name = found[1] if found else name
        found = re.search(r"^flags\s*: (.+)", text, re.M)
        flags = set(found[1].split()) if found else flags
        ids = re.search(r"^cpu family\s*: (\d+)\nmodel\s*: (\d+)", text, re.M)
        name += f" (family {ids[1]}, model {ids[2]})" if ids else ""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "Processor": name,
        "Cores": str(cores),
        "AVX2": "yes" if "avx2" in flags else "no",
        "AVX-512": "yes" if "avx512f" in flags else "no",
        "Memory": f"{memory:.0f} GiB",
        "System": f"{platform.system()}, {' '.join(platform.libc_ver())}".rstrip(", "),
        "Threads": f"{cores}, as many as there are cores, unless a section says otherwise",
    }


def read(folder: Path, benchmark: Benchmark) -> dict | None:
    path = folder / f"section-{benchmark.name}.json"
    section = json.loads(path.read_text()) if path.exists() else {}
    return section if FIELDS <= section.keys() else None  # else of an older version of this script


def render(folder: Path, output: Path, quick: bool) -> str:
    """All sections that are kept in the folder, and those of the last RESULTS.md that are not."""
    before = kept_sections(output) if output.exists() and not quick else {}
    sections = {b.name: section for b in RUN if (section := read(folder, b))}
    lines = ["# What the benchmarks printed", ""]
    if quick:
        lines += ["**A quick run: it shows that everything runs. Its numbers mean nothing.**", ""]
    lines += [
        "Written by `python benchmarks/run_all.py`, which says how to run it; each section is the "
        "output of one process, by the command above it. Times are medians of turns; quartiles, or "
        "the lowest and the highest, stand beside them.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in machine().items()),
    ]
    dates = sorted(section["date"] for section in sections.values())
    minutes = sum(section["seconds"] for section in sections.values()) / 60
    lines += [f"| Run | {dates[0]} to {dates[-1]}, {minutes:.0f} minutes of benchmarks |", ""]
    if failed := [name for name, section in sections.items() if section["failed"]]:
        lines += [f"Failed: {', '.join(failed)}.", ""]
    left_out = [b.name for b in RUN if b.name not in sections | before]
    if left_out:
        lines += [f"Not run: {', '.join(left_out)}.", ""]
    older = [b.name for b in RUN if b.name in before and b.name not in sections]
    if older:
        lines += [f"Kept from an earlier run, see their dates: {', '.join(older)}.", ""]
    for name in [b.name for b in RUN]:
        lines += shown(sections[name]) if name in sections else before.get(name, [])
    return "\n".join(lines)


def kept_sections(path: Path) -> dict[str, list[str]]:
    parts = re.split(r"(?m)^(?=## )", path.read_text(encoding="utf-8"))[1:]
    return {part.split("\n", 1)[0].removeprefix("## "): part.splitlines() for part in parts}


def shown(section: dict) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in section["versions"].items())
    place = f"{section['machine']['Processor']}, {section['machine']['Cores']} cores"
    lines = [f"## {section['name']}", "", "```", section["command"], "```", ""]
    lines += [
        f"{section['date']}, {section['seconds']:.0f} s ({section['processor_seconds']:.0f} s of "
        f"processor time, load before it {section['load']:.1f}), on {place}; {packages}."
    ]
    lines += ["", section["note"]] if section["note"] else []
    for reason in section["missing"]:
        lines += ["", f"**Not installed**, {reason}"]
    if section["failed"]:
        lines += ["", f"**Failed**, {section['failed']}"]
    return [*lines, "", *blocks(section["output"]), ""]


def blocks(output: str) -> list[str]:
    """Markdown tables as they are, everything else as it was printed."""
    lines: list[str] = []
    fenced = False
    for line in output.splitlines():
        is_table = line.startswith("|")
        if fenced == is_table and (fenced or line):  # a change of kind
            lines += ["```", ""] if fenced else ["", "```"]
            fenced = not fenced
        lines.append(line)
    return [*lines, "```"] if fenced else lines


# The figures elsewhere

LABELS = {"", "data set", "method", "then", "weights pruned"}  # heads of columns that name a row


def filled(text: str, results: str) -> str:
    """The text with the cells of `results` in those rows of tables that have the same labels."""
    measured: dict[tuple, dict[str, str]] = {}
    for _, labels, row in rows(results):
        measured.setdefault(labels, {}).update(row)
    lines = text.splitlines()
    for place, labels, row in rows(text):
        new = {head: measured.get(labels, {}).get(head, cell) for head, cell in row.items()}
        if new != row:
            named = [label for _, label in labels]
            lines[place] = f"| {' | '.join([*named, *new.values()])} |"
    return "\n".join(lines) + "\n"


def rows(text: str) -> Iterator[tuple[int, tuple[tuple[str, str], ...], dict[str, str]]]:
    """Yields each row of the tables: its line, its labels under their heads, its other cells."""
    header: list[str] = []
    for place, line in enumerate(text.splitlines()):
        if not line.startswith("|"):
            header = []
        elif not header:
            header = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell) for cell in cells(line)]
        elif not re.fullmatch(r"[|: -]+", line) and len(cells(line)) == len(header):
            pairs = list(zip(header, cells(line), strict=True))
            labels = tuple(pair for pair in pairs if pair[0] in LABELS)
            yield place, labels, dict(pair for pair in pairs if pair[0] not in LABELS)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def replace(path: Path, text: str) -> None:
    """Writes beside, then replaces: nobody finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
