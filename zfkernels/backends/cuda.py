"""Backend cuda: hand-written CUDA C++ through zfkernels._C. This release has no kernels in it.

What is here proves the ground they will stand on: the module is built by nvcc when there is one, loads without a
driver, finds the devices, and says why it cannot serve; `zfkernels info` runs a small kernel of the module on each.
"""

import torch

import zfkernels

DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Why this backend cannot run here, and what would change that; None when it can."""
    reason = device_problem()
    if reason is not None:
        return reason
    return f"zfkernels {zfkernels.__version__} has no CUDA kernels yet; use backend='cpu' on tensors in host memory"


def device_problem() -> str | None:
    """Why zfkernels._C cannot use a CUDA device: not built for it, no driver, no device; None when it can."""
    try:
        from zfkernels import _C
    except ImportError as error:
        return f"the compiled module zfkernels._C cannot be imported ({error}); run: pip install -e ."
    if not _C.built_with_cuda:
        return (
            "built without CUDA: nvcc was not found (or ZFKERNELS_CUDA=0) when zfkernels was installed; "
            "install the CUDA toolkit and run: ZFKERNELS_CUDA=1 pip install --force-reinstall --no-deps ."
        )
    driver, runtime = _C.cuda_driver_version(), _C.cuda_runtime_version()
    if driver == 0:
        return "no CUDA device: no NVIDIA driver is loaded; install one, or use backend='cpu'"
    try:
        if _C.cuda_device_count() == 0:
            return "no CUDA device: the driver lists none (CUDA_VISIBLE_DEVICES hides them?)"
    except RuntimeError as error:
        built = f"the driver supports CUDA {version(driver)}, zfkernels was built with {version(runtime)}"
        return f"no CUDA device: {error}; {built}"
    return None


def devices() -> list[dict[str, object]]:
    """The devices that can be used: name, capability (major, minor), memory in bytes of each."""
    if device_problem() is not None:
        return []
    from zfkernels import _C

    return [_C.cuda_device(i) for i in range(_C.cuda_device_count())]


def version(number: int) -> str:
    """CUDA's 1000 * major + 10 * minor as "major.minor"."""
    return f"{number // 1000}.{number % 1000 // 10}"
