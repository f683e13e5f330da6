"""Translates nvcc's PTX to C++ for machine.h: every kernel a function, every register a local, every instruction a
statement. What it does not know is an error that names the instruction.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

BITS = {"8": 8, "16": 16, "32": 32, "64": 64}
REGISTERS = {"p": "bool", "rs": "uint16_t", "r": "uint32_t", "f": "float", "rd": "uint64_t"}
DECLARED = {"pred": "p", "b16": "rs", "b32": "r", "f32": "f", "b64": "rd"}
SPECIAL = {"%tid.x": "thread.x", "%ntid.x": "block.threads", "%ctaid.x": "block.x", "%ctaid.y": "block.y"}
SPECIAL |= {"%ctaid.z": "block.z", "%nctaid.x": "block.blocks_x", "%nctaid.y": "block.blocks_y"}

# C++ of two-operand instructions, {0} and {1} of the type, {u} its unsigned one, {n} its bits.
INTEGER = {
    "add": "({u})({0}) + ({u})({1})",
    "sub": "({u})({0}) - ({u})({1})",
    "div": "divided({0}, {1})",
    "rem": "remainder_of({0}, {1})",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "xor": "{0} ^ {1}",
    "not": "~{0}",
    "neg": "0 - ({u})({0})",
    "abs": "{0} < 0 ? 0 - ({u})({0}) : ({u})({0})",
    "min": "{0} < {1} ? {0} : {1}",
    "max": "{0} > {1} ? {0} : {1}",
}
FLOAT = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "fma": "std::fma({0}, {1}, {2})",
    "neg": "-{0}",
    "abs": "std::fabs({0})",
    "div": "{0} / {1}",
    "rcp": "1.0f / {0}",
    "sqrt": "std::sqrt({0})",
    "rsqrt": "static_cast<float>(1.0 / std::sqrt(static_cast<double>({0})))",
    "ex2": "std::exp2({0})",
    "lg2": "std::log2({0})",
    "max": "std::fmax({0}, {1})",
    "min": "std::fmin({0}, {1})",
}
PREDICATE = {"and": "{0} && {1}", "or": "{0} || {1}", "xor": "{0} != {1}", "not": "!{0}", "mov": "{0}"}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">"}
COMPARE |= {"hs": ">="}
ROUND = {"rzi": "std::trunc", "rni": "std::nearbyint", "rmi": "std::floor", "rpi": "std::ceil"}
HALVES = {"fma.bf16x2": "fma_bfloat16", "fma.f16x2": "fma_float16"}
HALVES |= {"max.bf16x2": "max_nan_bfloat16", "max.f16x2": "max_nan_float16"}
MMA = {"bf16": "mma_bfloat16", "f16": "mma_float16", "tf32": "mma_tf32"}


class Kernel(NamedTuple):
    """A kernel: its symbol, its C++ with `NAME` for the function's name, the (offset, bytes) of its parameters, and
    the most threads a block may have."""

    symbol: str
    code: str
    parameters: list[tuple[int, int]]
    threads: int


class Unknown(Exception):
    """An instruction that has no translation here."""


def kernels(ptx: str) -> list[Kernel]:
    """Every kernel of a PTX file."""
    text = re.sub(r"//[^\n]*", "", ptx)
    entry = re.compile(r"\.entry\s+(\S+?)\s*\((.*?)\)\s*([^{]*)\{(.*?)\n\}", re.DOTALL)
    return [translated(*found.groups()) for found in entry.finditer(text)]


def translated(symbol: str, parameters: str, bounds: str, body: str) -> Kernel:
    offsets, layout, end = {}, [], 0
    for declared in split(parameters):
        found = re.fullmatch(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?", declared)
        align, kind, name, count = found.groups()
        size = bits(kind) // 8
        step = int(align or size)
        end = -(-end // step) * step
        offsets[name] = end
        layout.append((end, size * int(count or 1)))
        end += layout[-1][1]
    lines = [statement(text, offsets) for text in statements(body)]
    threads = re.search(r"\.maxntid\s+(\d+)", bounds)
    code = "void NAME(const char* params) {\n" + "\n".join(filter(None, lines)) + "\n}\n"
    return Kernel(symbol, code, layout, int(threads[1]) if threads else 1024)


def statements(body: str) -> list[str]:
    """The body's labels and instructions, each without its semicolon."""
    pieces = re.findall(r"\$\w+:|[^;:]+(?=;)", re.sub(r"\s+", " ", body).replace("::", "\0"))
    return [piece.replace("\0", "::").strip() for piece in pieces if piece.strip()]


def statement(text: str, offsets: dict[str, int]) -> str:
    if text.startswith("$"):
        return f"{label(text[:-1])}:;"
    if declared := re.fullmatch(r"\.reg \.(\w+) %(\w+)<(\d+)>", text):
        kind, prefix, count = declared.groups()
        if DECLARED.get(kind) != prefix:
            raise Unknown(text)
        return f"{REGISTERS[prefix]} " + ", ".join(f"{prefix}{i}" for i in range(int(count))) + ";"
    if text.startswith((".pragma", ".loc")):
        return ""
    guard, operation, operands = re.fullmatch(r"(?:@(!?%p\d+) )?([a-z][\w.:]*) ?(.*)", text).groups()
    code = instruction(operation, split(operands), offsets, text)
    return f"if ({guard.replace('%', '')}) {{ {code} }}" if guard else code


def instruction(operation: str, args: list[str], offsets: dict[str, int], text: str) -> str:
    base, *modifiers = operation.split(".")
    try:
        return TRANSLATIONS.get(base, arithmetic)(base, modifiers, args, offsets)
    except (KeyError, IndexError, TypeError) as error:
        raise Unknown(f"no translation of {text!r} ({type(error).__name__}: {error})") from error


# Operands


def split(text: str) -> list[str]:
    """By the commas outside brackets."""
    return [part.strip() for part in re.findall(r"(?:[^,{\[(]|[{\[(][^}\])]*[}\])])+", text) if part.strip()]


def bits(kind: str) -> int:
    return BITS[kind[1:]]


def c_type(kind: str) -> str:
    return f"int{bits(kind)}_t" if kind[0] == "s" else f"uint{bits(kind)}_t"


def label(name: str) -> str:
    return name.replace("$", "at_")


def prefix_of(operand: str) -> str:
    """The kind of register, "" for what is none."""
    found = re.fullmatch(r"%(p|rs|rd|r|f)\d+", operand)
    return found[1] if found else ""


def raw(operand: str, offsets: dict[str, int]) -> str:
    """The operand's bits, as an unsigned integer."""
    if prefix := prefix_of(operand):
        return f"bits_of({operand[1:]})" if prefix == "f" else operand[1:]
    if operand in SPECIAL:
        return SPECIAL[operand]
    if re.fullmatch(r"0[fF][0-9A-Fa-f]{8}", operand):
        return f"0x{operand[2:]}u"
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
        return f"{operand.rstrip('U')}ll"
    if operand in offsets:  # a parameter's address
        return f"(reinterpret_cast<uint64_t>(params) + {offsets[operand]})"
    if operand.endswith("zf_sharedE"):  # where dynamic shared memory begins
        return "0"
    raise KeyError(operand)


def value(operand: str, kind: str, offsets: dict[str, int]) -> str:
    """The operand as a value of that type."""
    if kind == "pred":
        return operand[1:] if prefix_of(operand) == "p" else str(int(operand))
    if kind == "f32":
        return operand[1:] if prefix_of(operand) == "f" else f"float_of({raw(operand, offsets)})"
    return f"static_cast<{c_type(kind)}>({raw(operand, offsets)})"


def put(operand: str, kind: str, code: str) -> str:
    """Writes a value of that type to a register; a signed one is extended with its sign."""
    prefix = prefix_of(operand)
    if kind in ("pred", "f32"):
        return f"{operand[1:]} = {code if prefix in 'pf' else f'bits_of({code})'};"
    if prefix == "f":
        return f"{operand[1:]} = float_of({code});"
    return f"{operand[1:]} = static_cast<{REGISTERS[prefix]}>(static_cast<{c_type(kind)}>({code}));"


def address(operand: str, offsets: dict[str, int]) -> str:
    base, _, offset = operand.strip("[] ").partition("+")
    return f"{raw(base, offsets)} + {int(offset or 0)}ll"


def listed(operand: str) -> list[str]:
    return split(operand[1:-1]) if operand.startswith("{") else [operand]


# Instructions: each takes the name, what follows its dots, the operands, and where parameters lie


def arithmetic(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    kind = modifiers[-1]
    if halves := HALVES.get(f"{base}.{kind}"):
        if base == "max" and "NaN" not in modifiers:
            raise KeyError(base)
        operands = ", ".join(raw(arg, offsets) for arg in args[1:])
        return f"{args[0][1:]} = in_halves({halves}, {operands});"
    operands = [value(arg, kind, offsets) for arg in args[1:]]
    if kind == "pred":
        return put(args[0], kind, PREDICATE[base].format(*operands))
    if kind == "f32":
        return put(args[0], kind, FLOAT[base].format(*operands))
    return put(args[0], kind, INTEGER[base].format(*operands, u=f"uint{bits(kind)}_t"))


def shift(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    kind = modifiers[-1]
    amount = value(args[2], "u32", offsets)
    return put(
        args[0], kind, f"shifted_{'left' if base == 'shl' else 'right'}({value(args[1], kind, offsets)}, {amount})"
    )


def multiply(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    """mul and mad: the low half, the high half, or all of the product of integers."""
    half, kind = modifiers[-2:] if len(modifiers) > 1 else ("", modifiers[-1])
    if kind == "f32":
        return arithmetic(base, modifiers, args, offsets)
    wide = f"{kind[0]}{2 * bits(kind)}" if bits(kind) < 64 else kind
    first, second = (value(arg, kind, offsets) for arg in args[1:3])
    product = f"static_cast<{c_type(wide)}>({first}) * static_cast<{c_type(wide)}>({second})"
    result = wide if half == "wide" else kind
    if half == "hi":
        product = f"(({product}) >> {bits(kind)})"
    elif half == "lo":
        product = f"static_cast<uint64_t>({first}) * static_cast<uint64_t>({second})"
    added = f" + static_cast<uint64_t>({value(args[3], result, offsets)})" if base == "mad" else ""
    return put(args[0], result, product + added)


def move(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    """mov, between registers of one size, or packing and unpacking parts of one."""
    kind = modifiers[-1]
    if kind == "pred":
        return put(args[0], kind, value(args[1], kind, offsets))
    kind = "b32" if kind == "f32" else kind
    if args[1].startswith("{"):
        parts = listed(args[1])
        size = bits(kind) // len(parts)
        pieces = [
            f"(static_cast<{c_type(kind)}>(static_cast<uint{size}_t>({raw(part, offsets)})) << {i * size})"
            for i, part in enumerate(parts)
        ]
        return put(args[0], kind, " | ".join(pieces))
    if args[0].startswith("{"):
        parts = listed(args[0])
        size = bits(kind) // len(parts)
        whole = raw(args[1], offsets)
        return " ".join(put(part, f"b{size}", f"{whole} >> {i * size}") for i, part in enumerate(parts) if part != "_")
    if prefix_of(args[0]) == "f" and prefix_of(args[1]) == "f":
        return f"{args[0][1:]} = {args[1][1:]};"
    return put(args[0], kind, raw(args[1], offsets))


def access(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    """ld and st, of one value or a vector."""
    space, kind = modifiers[0], modifiers[-1]
    count = next((int(m[1:]) for m in modifiers if m in ("v2", "v4")), 1)
    kind = "b32" if kind == "f32" else kind
    size, memory, registers = bits(kind) // 8, args[base == "ld"], listed(args[base != "ld"])
    where = address(memory, offsets)
    if space == "param":
        at = f"reinterpret_cast<const char*>({where})"
    elif space in ("shared", "global"):
        at = f"{space}_memory({where}, {size * count})"
    else:
        raise KeyError(space)
    parts = []
    for i, register in enumerate(registers):
        place = f"at + {i * size}"
        if base == "ld":
            parts.append(put(register, kind, f"load<{c_type(kind)}>({place})"))
        else:
            parts.append(f"store({place}, static_cast<{c_type(kind)}>({raw(register, offsets)}));")
    return f"{{ auto* const at = {at}; {' '.join(parts)} }}"


def compare(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    how, kind = modifiers
    first, second = (value(arg, kind, offsets) for arg in args[1:])
    unordered = f"std::isunordered({first}, {second})"
    if kind != "f32":
        code = f"{first} {COMPARE[how]} {second}"
    elif how in ("nan", "num"):
        code = unordered if how == "nan" else f"!{unordered}"
    elif how.endswith("u"):
        code = f"{unordered} || {first} {COMPARE[how[:-1]]} {second}"
    else:
        code = f"!{unordered} && {first} {COMPARE[how]} {second}"
    return put(args[0], "pred", code)


def select(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    kind = "b32" if modifiers[-1] == "f32" else modifiers[-1]
    first, second = (value(arg, kind, offsets) for arg in args[1:3])
    return put(args[0], kind, f"{args[3][1:]} ? {first} : {second}")


def convert(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    to, source = modifiers[-2:]
    if to in ("bf16x2", "f16x2"):
        name = "to_bfloat16" if to == "bf16x2" else "to_float16"
        high, low = (value(arg, "f32", offsets) for arg in args[1:])
        return put(args[0], "b32", f"uint32_t{{{name}({high})}} << 16 | {name}({low})")
    if to == "tf32":
        return put(args[0], "b32", f"to_tf32({value(args[1], 'f32', offsets)})")
    if source == "f16":
        return put(args[0], "f32", f"from_float16({raw(args[1], offsets)})")
    operand = value(args[1], source, offsets)
    if source == "f32":
        rounded = f"{ROUND[modifiers[0]]}({operand})"
        return put(args[0], to, rounded if to == "f32" else f"static_cast<{c_type(to)}>({rounded})")
    if to == "f32":
        return put(args[0], to, f"static_cast<float>({operand})")
    return put(args[0], to, f"static_cast<{c_type(to)}>({operand})")


def convert_address(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    """cvta between generic and global addresses, which are the same here."""
    if modifiers not in (["to", "global", "u64"], ["global", "u64"]):
        raise KeyError(modifiers)
    return put(args[0], "u64", raw(args[1], offsets))


def permute(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    return put(args[0], "b32", f"permuted({', '.join(value(arg, 'b32', offsets) for arg in args[1:])})")


def insert(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    return put(args[0], "b32", f"inserted({', '.join(value(arg, 'u32', offsets) for arg in args[1:])})")


def branch(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    return f"goto {label(args[0])};"


def leave(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    return "return;"


def barrier(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    if modifiers != ["sync"] or args != ["0"]:
        raise KeyError(args)
    return "wait_for_block();"


def shuffle(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    """shfl.sync.bfly among all lanes."""
    if modifiers != ["sync", "bfly", "b32"]:
        raise KeyError(modifiers)
    to = args[0].partition("|")[0]
    operands = ", ".join(value(arg, "u32", offsets) for arg in args[1:])
    return put(to, "b32", f"exchanged({operands})")


def load_matrix(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    registers = listed(args[0])
    trans = "true" if "trans" in modifiers else "false"
    code = f"const uint32_t* const got = load_matrices({address(args[1], offsets)}, {len(registers)}, {trans});"
    return f"{{ {code} {' '.join(put(r, 'b32', f'got[{i}]') for i, r in enumerate(registers))} }}"


def multiply_matrices(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    d, a, b, c = map(listed, args)
    words = [f"{{{', '.join(f'static_cast<uint32_t>({raw(r, offsets)})' for r in part)}}}" for part in (a, b, c)]
    code = f"const float* const got = {MMA[modifiers[-2]]}({', '.join(words)});"
    return f"{{ {code} {' '.join(put(r, 'f32', f'got[{i}]') for i, r in enumerate(d))} }}"


def copy(base: str, modifiers: list[str], args: list[str], offsets: dict[str, int]) -> str:
    """cp.async is done at once; its groups and waits are then nothing."""
    if modifiers[1] in ("commit_group", "wait_group"):
        return ""
    to, source = (address(arg, offsets) for arg in args[:2])
    given = value(args[3] if len(args) > 3 else args[2], "u32", offsets)
    return f"copy_to_shared({to}, {source}, {args[2]}, {given});"


TRANSLATIONS: dict[str, Callable[[str, list[str], list[str], dict[str, int]], str]] = {
    "mov": move,
    "ld": access,
    "st": access,
    "setp": compare,
    "selp": select,
    "cvt": convert,
    "cvta": convert_address,
    "mul": multiply,
    "mad": multiply,
    "shl": shift,
    "shr": shift,
    "prmt": permute,
    "bfi": insert,
    "bra": branch,
    "ret": leave,
    "bar": barrier,
    "shfl": shuffle,
    "ldmatrix": load_matrix,
    "mma": multiply_matrices,
    "cp": copy,
}
