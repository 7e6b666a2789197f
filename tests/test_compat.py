"""Every private interface of a library that the package uses, tried on the installed version."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface, GenerationConfig

from sparsemm_eval import compat
from tests.tiny_models import generate, model_of, prompt_of

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef" * 2 + "01234567"
#: Without an underscore, but promised to nobody either.
INTERNAL = ("wandb.sdk", "wandb_workspaces.utils", "lmms_eval.models.model_utils", "click.core", "typer.core")
ACCESSORS = ("getattr", "setattr", "hasattr", "delattr")


def test_generation_defaults():
    defaults = compat.generation_defaults()
    assert (defaults["num_beams"], defaults["typical_p"], defaults["do_sample"]) == (1, 1.0, False)
    defaults["num_beams"] = 2
    assert compat.generation_defaults()["num_beams"] == 1


def test_attention_is_read_at_every_call():
    model, prompt = model_of("llama"), prompt_of("llama")
    calls = []

    def counting(module, query, key, value, attention_mask, **kwargs):
        calls.append(module.layer_idx)
        return AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("counting_sdpa", counting)
    config = model.config.get_text_config()
    assert compat.attention_of(config) == "sdpa"
    expected = generate(model, prompt.inputs, 1)
    with compat.attention_set_to(config, "counting_sdpa"):
        assert compat.attention_of(config) == "counting_sdpa"
        found = generate(model, prompt.inputs, 1)
    assert calls == [0, 1, 2]
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError), compat.attention_set_to(config, "counting_sdpa"):
        raise RuntimeError
    assert compat.attention_of(config) == "sdpa"


def test_generation_config_is_the_calls_over_the_models():
    model = model_of("llama")
    config = compat.generation_config_of(model, None, {"max_new_tokens": 3})
    assert (config.max_new_tokens, config.pad_token_id) == (3, model.generation_config.pad_token_id)
    config = compat.generation_config_of(model, GenerationConfig(top_k=7), {"do_sample": True})
    assert (config.top_k, config.do_sample) == (7, True)
    assert model.generation_config.max_new_tokens is None


def test_a_static_address_is_known_to_the_compiler():
    tensor = torch.zeros(3)
    compat.mark_static_address(tensor)
    assert tensor._dynamo_static_input_type


def test_hooks_have_numbers_of_their_own():
    module = torch.nn.Linear(2, 2)
    assert compat.hooks_of(module) == ()
    before = module.register_forward_pre_hook(lambda module, inputs: None)
    first = compat.hooks_of(module)
    after = module.register_forward_hook(lambda module, inputs, output: None)
    assert len({*first, *compat.hooks_of(module)}) == 2
    before.remove(), after.remove()
    module.register_forward_hook(lambda module, inputs, output: None)
    assert compat.hooks_of(module) != first  # a number is not given twice


def test_assert_on_device():
    compat.assert_on_device(torch.tensor(True), "unused")
    with pytest.raises(RuntimeError, match="no more room"):
        compat.assert_on_device(torch.tensor(False), "no more room")
    # compiled as one graph, as a decode step is
    compiled = torch.compile(
        lambda flag: compat.assert_on_device(flag, "no more room"), backend="eager", fullgraph=True
    )
    compiled(torch.tensor(True))
    with pytest.raises(RuntimeError, match="no more room"):
        compiled(torch.tensor(False))


def test_work_space_can_be_given_back():
    assert callable(torch._C._cuda_clearCublasWorkspaces)
    if torch.cuda.is_available():
        compat.free_library_workspaces()


def test_softmax_gradient_is_autograds():
    scores = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    output = scores.softmax(-1)
    gradient = torch.arange(36.0).view(4, 9)
    (expected,) = torch.autograd.grad(output, scores, gradient)
    assert torch.equal(compat.softmax_gradient(gradient, output.detach()), expected)


def test_throughput_reaches_lmms_eval():
    from lmms_eval.models.model_utils import gen_metrics

    gen_metrics.reset_logged_metrics()
    compat.log_throughput(2.0, 10, {"effective_budget": 31.5})
    summary = gen_metrics.summarize_logged_metrics()
    gen_metrics.reset_logged_metrics()
    assert (summary["total_gen_tokens"], summary["total_elapsed_time"], summary["avg_speed"]) == (10, 2, 5)
    assert summary["avg_effective_budget"] == 31.5


@pytest.mark.parametrize("key", ["", "0" * 40])
def test_wandb_credentials(tmp_path, key):
    given = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": key}
    given |= {"WANDB_CONFIG_DIR": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    code = "from sparsemm_eval import compat; print(compat.has_wandb_credentials())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **given}, capture_output=True, text=True
    )
    if key:
        assert done.stdout.split() == ["True"], done.stderr
    else:
        assert "wandb.errors.errors.UsageError: No API key" in done.stderr


def test_workspace_view():
    workspaces = pytest.importorskip("wandb_workspaces.workspaces", reason="an optional dependency")
    view = compat.workspace_view(workspaces.Workspace(entity="us", project="study", name="overview"))
    assert (view.entity, view.project, view.display_name) == ("us", "study", "overview")
    assert view.spec.model_dump(mode="json", by_alias=True)["section"]


def private_uses(path):
    """Names with an underscore that a file takes from others, as far as its text tells."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and is_own(node.value)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            for name in (module, *(alias.name for alias in node.names)):
                internal = any(f"{module}.".startswith(f"{start}.") for start in INTERNAL)
                if internal or any(map(is_private, name.split("."))):
                    yield name
        elif isinstance(node, ast.Call):
            called = [part.id for part in (node.func, *node.args) if isinstance(part, ast.Name)]
            texts = [part.value for part in node.args if isinstance(part, ast.Constant)]
            if set(called) & set(ACCESSORS):
                yield from (text for text in texts if isinstance(text, str) and is_private(text))


def is_private(name):
    return name.startswith("_") and not name.endswith("__")


def is_own(value):
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def test_no_other_file_knows_a_private_name_of_a_library():
    files = [
        path for room in ("sparsemm_eval", "model_wrappers", "tasks") for path in (ROOT / room).rglob("*.py")
    ]
    found = {path.relative_to(ROOT).as_posix(): set(private_uses(path)) for path in files}
    assert len(found) > 100
    assert found.pop("sparsemm_eval/compat.py") >= {"_to_model", "_assert_async", "wandb.sdk.lib.wbauth"}
    found["model_wrappers/answering/failures.py"].remove("_exit")  # of os, and documented
    assert {name: uses for name, uses in found.items() if uses} == {}
