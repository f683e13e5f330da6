"""What the compiler makes of csrc/cuda, without a GPU: registers, spills, shared memory, and the instructions of each
kernel's loops.

    python benchmarks/static.py                                    # writes results/static/sm_90a.json and .md
    python benchmarks/static.py --against results/static/before.json    # the table with both
    python benchmarks/static.py --check --objects build            # are the files those of what was built there?

Compiles every source by nvcc for one architecture, or takes what setup.py has built, and reads the machine code by
cuobjdump (that of an installed triton, PATH's or the toolkit's). A loop is what a branch goes back over. Listed are the
innermost loops with matrix products, then the largest loop without any that reads memory. These are counts, not times:
how often a loop runs is not in them. Shared memory is asked for at the launch: it is that of ZFNet's layers, where they
launch the kernel (tests/emulator/launches.py).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import setup as build_script  # noqa: E402

# The first that an instruction's name begins with is its kind.
KINDS = {
    "products": ("HMMA", "HGMMA", "FFMA", "DFMA"),
    "float": (
        "FADD",
        "FMUL",
        "FSEL",
        "FMNMX",
        "FSETP",
        "FCHK",
        "MUFU",
        "HFMA2",
        "HADD2",
        "HMUL2",
        "HMNMX2",
        "F2F",
        "F2I",
    ),
    "shared loads": ("LDSM", "LDS"),
    "shared stores": ("STS",),
    "copies": ("LDGSTS", "LDGDEPBAR", "DEPBAR"),
    "global loads": ("LDG", "LD."),
    "global stores": ("STG", "ST."),
    "spills": ("LDL", "STL"),
    "constants": ("LDC", "ULDC"),
    "compares": ("ISETP", "PLOP3", "UISETP", "UPLOP3", "VIMNMX", "IMNMX", "P2R", "R2P"),
    "control": ("BRA", "BSSY", "BSYNC", "BAR", "EXIT", "WARPSYNC", "NOP", "CALL", "RET", "BREAK", "YIELD"),
}
OTHER = "integer"  # additions, shifts, masks, moves, addresses
LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*?);", re.MULTILINE)


class Loop(NamedTuple):
    """The addresses of a loop's first and last instruction."""

    first: int
    last: int

    def within(self, other: "Loop") -> bool:
        return self != other and other.first <= self.first and self.last <= other.last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="90a", help="as nvcc names it (default %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/static", help="folder")
    parser.add_argument("--name", help="of the files (default: sm_<architecture>)")
    parser.add_argument("--against", type=Path, help="an earlier JSON, to stand in the table beside this")
    parser.add_argument("--objects", type=Path, help="take what setup.py has built below this folder")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the JSON there is of other code")
    args = parser.parse_args()
    nvcc = build_script.find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc not found: install the CUDA toolkit")
    with tempfile.TemporaryDirectory() as folder:
        if args.objects is None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda s: compiled(nvcc, s, args.architecture, Path(folder)), sources()))
        rows = [row for source in sources() for row in kernels(args.objects or Path(folder), source, args.architecture)]
    rows.sort(key=lambda row: (row["source"], row["kernel"]))
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    head = {"architecture": f"sm_{args.architecture}", "nvcc": re.findall(r"release ([\d.]+)", version)[-1]}
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{args.name or head['architecture']}.json"
    if args.check:
        return check(file, head, rows)
    launched = launches()
    for row in rows:
        row["threads"], row["shared"] = launched.get(short(row["kernel"]), (None, None))
    file.write_text(json.dumps(head | {"kernels": rows}, indent=1) + "\n")
    before = json.loads(args.against.read_text())["kernels"] if args.against else None
    text = table(rows, before)
    file.with_suffix(".md").write_text(f"# {head['architecture']}, nvcc {head['nvcc']}\n\n{text}\n")
    print(text)
    return 0


def sources() -> list[Path]:
    return sorted(ROOT.glob("csrc/cuda/*.cu"))


def compiled(nvcc: str, source: Path, architecture: str, folder: Path) -> None:
    """The source's machine code, and what ptxas says of it, named as setup.py names them."""
    target = folder / f"{source.stem}.o"
    code = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    command = [nvcc, *build_script.NVCC_FLAGS, code, "-I", str(ROOT / "csrc"), "-Xptxas", "-v", "-c"]
    done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout + done.stderr)
    target.with_suffix(".ptxas").write_text(done.stderr)


def kernels(folder: Path, source: Path, architecture: str) -> list[dict]:
    """A row for each kernel of the source, whose object lies somewhere below the folder."""
    native = f"sm_{architecture}"
    objects = sorted(folder.rglob(f"{source.stem}.ptxas"), key=lambda path: path.stat().st_mtime)
    resources = {}
    for log in objects:
        resources |= {r.kernel: r for r in build_script.ptxas_resources(log.read_text()) if r.architecture == native}
    if not objects or ("__global__" in source.read_text() and not resources):
        raise SystemExit(f"{folder} has nothing of {source.name} that setup.py has built for {native}")
    if not resources:
        return []
    command = [cuobjdump(), "--dump-sass", "--gpu-architecture", native, str(objects[-1].with_suffix(".o"))]
    text = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = []
    for part in text.stdout.split("Function : ")[1:]:
        kernel = build_script.readable(part.split(maxsplit=1)[0])
        found = resources[kernel]
        instructions = [(int(at, 16), name, rest) for at, name, rest in LINE.findall(part)]
        row = {"source": source.name, "kernel": kernel, "registers": found.registers, "stack": found.stack}
        row |= {"spilled": found.spilled, "instructions": len(instructions)}
        rows.append(row | {"loops": [counted(instructions, loop) for loop in main_loops(instructions)]})
    return rows


def check(file: Path, head: dict, rows: list[dict]) -> int:
    """Whether the rows are those of the file, by the same nvcc; 1 where they are not."""
    known = json.loads(file.read_text())
    if known["nvcc"] != head["nvcc"]:
        print(f"{file.name} is of nvcc {known['nvcc']}, which this {head['nvcc']} is not: not compared")
        return 0
    before = {row["kernel"]: {key: row.get(key) for key in rows[0]} for row in known["kernels"]}
    now = {row["kernel"]: row for row in rows}
    other = [short(kernel) for kernel in before | now if before.get(kernel) != now.get(kernel)]
    print(f"{len(rows)} kernels, {len(other)} of them not as in {file.name}: {', '.join(other) or 'none'}")
    if other:
        print("python benchmarks/static.py --against benchmarks/results/static/before.json writes it anew")
    return 1 if other else 0


def launches() -> dict[str, list[int]]:
    """The threads and the bytes of shared memory that the kernels are launched with, by their short names."""
    folder = ROOT / "tests/emulator"
    built = subprocess.run([sys.executable, str(folder / "build.py")], capture_output=True, text=True, check=True)
    module = built.stdout.splitlines()[-1]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(folder / "launches.py"), module]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout)


def cuobjdump() -> str:
    """The tool that disassembles: triton brings one."""
    from zfkernels.backends.triton import gate

    path = gate.tool("cuobjdump")
    if path is None:
        raise SystemExit("cuobjdump not found in triton's folder, PATH or CUDA_HOME: install the CUDA toolkit")
    return path


def main_loops(instructions: list[tuple[int, str, str]]) -> list[Loop]:
    loops = []
    for at, name, rest in instructions:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target and int(target[1], 16) < at:
            loops.append(Loop(int(target[1], 16), at))

    def products(loop: Loop) -> int:
        return sum(loop.first <= at <= loop.last and kind_of(name) == "products" for at, name, _ in instructions)

    def reads(loop: Loop) -> bool:
        return any(loop.first <= at <= loop.last and kind_of(name) == "global loads" for at, name, _ in instructions)

    multiplying = [loop for loop in loops if products(loop) >= 8]
    inner = [loop for loop in multiplying if not any(other.within(loop) for other in multiplying)]
    others = [loop for loop in loops if loop not in multiplying and reads(loop)]
    return inner + sorted(others, key=lambda loop: loop.last - loop.first)[-1:]


def counted(instructions: list[tuple[int, str, str]], loop: Loop) -> dict[str, int]:
    kinds = Counter(kind_of(name) for at, name, _ in instructions if loop.first <= at <= loop.last)
    return {"all": sum(kinds.values())} | {kind: kinds[kind] for kind in (*KINDS, OTHER) if kinds[kind]}


def kind_of(name: str) -> str:
    return next((kind for kind, names in KINDS.items() if name.startswith(names)), OTHER)


def table(rows: list[dict], before: list[dict] | None) -> str:
    """A line a kernel that has a loop; what has changed since as `before > now`."""
    old = {row["kernel"]: row for row in before or ()}
    heads = ("kernel", "registers", "spilled", "threads", "shared", "instructions", "loop", "of which")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        was = old.get(row["kernel"]) or next((r for r in old.values() if similar(r["kernel"], row["kernel"])), {})
        cells = [changed(was.get(name), row[name]) for name in ("registers", "spilled")]
        cells += ["-" if row.get(name) is None else str(row[name]) for name in ("threads", "shared")]
        cells.append(changed(was.get("instructions"), row["instructions"]))
        for i, loop in enumerate(row["loops"] or [{}]):
            earlier = was["loops"][i] if len(was.get("loops", ())) > i else {}
            kinds = [kind for kind in (*KINDS, OTHER) if kind in loop or kind in earlier]
            words = ", ".join(f"{changed(earlier.get(k, 0 if earlier else None), loop.get(k, 0))} {k}" for k in kinds)
            total = changed(earlier.get("all"), loop["all"]) if loop else "-"
            lines.append(f"| `{short(row['kernel'])}` | {' | '.join(cells)} | {total} | {words} |")
    return "\n".join(lines)


def changed(was: int | None, now: int) -> str:
    return str(now) if was is None or was == now else f"{was} > {now}"


def similar(was: str, now: str) -> bool:
    """Whether `now` is `was` with more template arguments."""
    a, b = short(was).rstrip(">"), short(now).rstrip(">")
    return b.startswith(f"{a},")


def short(kernel: str) -> str:
    """The name without its parameters."""
    name = re.sub(r"^void ", "", kernel)
    depth, end = 0, len(name)
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            end = i
            break
    return re.sub(r"\(int\)|\(bool\)", "", name[:end])


if __name__ == "__main__":
    sys.exit(main())
