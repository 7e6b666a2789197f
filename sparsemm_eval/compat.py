"""What this package uses of libraries beyond their public interfaces, a function for each thing.

Only this file knows such names, and `tests/test_compat.py` tries each on the installed version.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


def attention_of(config: PreTrainedConfig) -> str:
    """Name of the attention function that a model of this config calls.

    Relies on transformers' ``PreTrainedConfig._attn_implementation``; models can be told to use another by
    public means, but not asked.
    """
    return config._attn_implementation


@contextmanager
def attention_set_to(config: PreTrainedConfig, name: str) -> Iterator[None]:
    """Let the model of this config call another attention function for a while.

    Relies on ``PreTrainedConfig._attn_implementation`` being read at every call. The public
    ``set_attn_implementation`` checks whether the model supports a kernel, and knows whole models only.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def generation_config_of(
    model: PreTrainedModel, config: GenerationConfig | None, settings: Mapping[str, Any]
) -> GenerationConfig:
    """All settings of a ``generate`` call, those of the model included, as ``generate`` resolves them.

    Relies on transformers' ``GenerationMixin._prepare_generation_config``.
    """
    resolved, _ = model._prepare_generation_config(config, **settings)
    return resolved


def generation_defaults() -> dict[str, Any]:
    """What ``generate`` takes a setting to be that neither the call nor the model gives.

    Relies on transformers' ``GenerationConfig._get_default_generation_params``.
    """
    from transformers import GenerationConfig

    return GenerationConfig._get_default_generation_params()


def mark_static_address(tensor: torch.Tensor) -> None:
    """Promise that a tensor stays where it is, so that compiled code may take its address.

    Relies on ``torch._dynamo.mark_static_address``; importing ``torch._dynamo`` takes seconds.
    """
    from torch import _dynamo

    _dynamo.mark_static_address(tensor)


@contextmanager
def hooks_respected_by_compiled_code(recompile_limit: int) -> Iterator[None]:
    """Let compiled code be compiled again where hooks were added or removed, and for this many shapes.

    Relies on ``torch._dynamo.config``. By default compiled code goes on without hooks that came later, and at
    the ninth shape it is not compiled any more, or fails.
    """
    from torch._dynamo import config

    with config.patch(skip_nnmodule_hook_guards=False, recompile_limit=recompile_limit):
        yield


@contextmanager
def compile_clock() -> Iterator[Callable[[], float]]:
    """Gives a function that says how many seconds have been spent compiling inside the ``with`` block.

    Relies on the callbacks of ``torch._dynamo.callback``.
    """
    from torch._dynamo.callback import callback_handler

    spent, begun = 0.0, 0.0

    def start(_: Any) -> None:
        nonlocal begun
        begun = time.perf_counter()

    def end(_: Any) -> None:
        nonlocal spent
        spent += time.perf_counter() - begun

    callback_handler.register_start_callback(start)
    callback_handler.register_end_callback(end)
    try:
        yield lambda: spent
    finally:
        with suppress(ValueError):  # torch._dynamo.reset() has forgotten them
            callback_handler.remove_start_callback(start)
            callback_handler.remove_end_callback(end)


@contextmanager
def compiled_call_for_a_while(model: PreTrainedModel) -> Iterator[None]:
    """Take away again the compiled forward pass that ``generate`` leaves on a model.

    Relies on transformers' ``PreTrainedModel._compiled_call`` and ``_last_compile_config``.
    """
    names = ("_compiled_call", "_last_compile_config")
    before = {name: vars(model).pop(name) for name in names if name in vars(model)}
    try:
        yield
    finally:
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(before)


def hooks_of(module: torch.nn.Module) -> tuple[int, ...]:
    """Numbers of the hooks that a module calls before and after its forward pass; no two hooks share one.

    Relies on ``torch.nn.Module._forward_hooks`` and ``_forward_pre_hooks``.
    """
    return (*module._forward_hooks, *module._forward_pre_hooks)


def is_recompile_limit(error: BaseException) -> bool:
    """Whether compiled code was asked for more shapes than it may be compiled for.

    Relies on ``torch._dynamo.exc.FailOnRecompileLimitHit``.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    return isinstance(error, FailOnRecompileLimitHit)


def assert_on_device(condition: torch.Tensor, message: str) -> None:
    """Fail where a bool [] tensor is false, on its device and without waiting for it.

    Relies on ``torch._assert_async``, which compiled and captured code may hold.
    """
    import torch

    torch._assert_async(condition, message)


def free_library_workspaces() -> None:
    """Give back the work space that matrix libraries hold per stream; no graph may need it any more.

    Relies on ``torch._C._cuda_clearCublasWorkspaces``.
    """
    import torch

    torch._C._cuda_clearCublasWorkspaces()


def softmax_gradient(gradient: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Gradient of a softmax's input over the last dimension, from that of its output.

    Relies on ``torch._softmax_backward_data``, which autograd calls itself.
    """
    import torch

    return torch._softmax_backward_data(gradient, output, -1, output.dtype)


def evaluation_arguments() -> dict[str, Any]:
    """Arguments of the ``simple_evaluate`` of lmms-eval that the caller runs in; none outside of it.

    Relies on the names of that function and of its parameters, since a model is told its own arguments only.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "simple_evaluate" and frame.f_globals.get("__name__") == "lmms_eval.evaluator":
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            return {name: frame.f_locals.get(name) for name in names}
        frame = frame.f_back
    return {}


def log_throughput(seconds: float, tokens: int, figures: Mapping[str, float]) -> None:
    """Hand figures of a run to lmms-eval, which writes them into its results under ``throughput``.

    Relies on ``lmms_eval.models.model_utils.gen_metrics``, which upstream's own models call.
    """
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    log_metrics(
        total_elapsed_time=seconds,
        total_gen_tokens=tokens,
        avg_speed=tokens / seconds if seconds else 0.0,
        additional_metrics=dict(figures),
    )


def has_wandb_credentials() -> bool:
    """Whether W&B credentials lie ready; never prompts, and asks no server, which ``wandb.login`` may do.

    Relies on ``wandb.sdk.lib.wbauth.authenticate_session``.

    Raises
    ------
    wandb.errors.Error
        If there are none and nobody can be asked, or they cannot be right.
    """
    import wandb
    from wandb.sdk.lib.wbauth import authenticate_session

    host = wandb.setup().settings.base_url
    return bool(authenticate_session(host=host, source="sparsemm", no_offline=True))


def workspace_view(workspace: Any) -> Any:
    """A W&B workspace as its ``save`` sends it, with ``spec`` as a pydantic model.

    Relies on ``wandb_workspaces.workspaces.Workspace._to_model``; the package has no public way.
    """
    return workspace._to_model()
