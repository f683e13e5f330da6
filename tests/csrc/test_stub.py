"""zfkernels/_C.pyi against the compiled module: its names, and how many arguments each function takes."""

import ast
from pathlib import Path

import zfkernels
from zfkernels import _C

STUB = ast.parse(Path(zfkernels.__file__).with_name("_C.pyi").read_text())


def test_the_stub_names_what_the_module_has() -> None:
    functions = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
    values = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    known = {name for name in functions if _C.built_with_cuda or not name.startswith("cuda_")} | values
    for name, node in classes.items():
        methods = {method.name for method in node.body if isinstance(method, ast.FunctionDef)} - {"__init__"}
        assert methods == {method for method in vars(getattr(_C, name)) if not method.startswith("_")}
    known |= set(classes)
    assert known == {name for name in vars(_C) if not name.startswith("_")}


def test_each_function_takes_as_many_arguments_as_its_stub_says() -> None:
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef) and hasattr(_C, node.name):
            said = getattr(_C, node.name).__doc__.splitlines()[0]
            (made,) = ast.parse(f"def {said}: ...").body
            counted = [len(f.args.posonlyargs + f.args.args) for f in (node, made)]
            assert counted[0] == counted[1], f"{node.name}: {counted[0]} in the stub; the module has {said}"
