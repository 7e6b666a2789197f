"""The tiny readers by name: unmodified transformers models and processors, built, saved."""

from sparsemm_eval.pages.readers import llava as llava_family
from sparsemm_eval.pages.readers import qwen2vl as qwen2vl_family
from sparsemm_eval.pages.readers.family import Family
from sparsemm_eval.pages.readers.tokenizer import build_tokenizer

FAMILIES = {
    family.name: family
    for family in (
        Family(
            "tiny-reader",
            llava_family.SPECIAL,
            llava_family.CHAT,
            "<image>",
            llava_family.llava("LlamaConfig", num_key_value_heads=8),
            llava_family.llava_processor,
        ),
        Family(
            "tiny-reader-mistral",
            llava_family.SPECIAL,
            llava_family.CHAT,
            "<image>",
            llava_family.llava("MistralConfig", num_key_value_heads=2, sliding_window=None),
            llava_family.llava_processor,
        ),
        Family(
            "tiny-reader-qwen2vl",
            qwen2vl_family.SPECIAL,
            qwen2vl_family.CHAT,
            "<|image_pad|>",
            qwen2vl_family.qwen2vl,
            qwen2vl_family.qwen2vl_processor,
        ),
    )
}


def family_named(name):
    """Look a family up.

    Raises
    ------
    KeyError
        If there is none of that name; the message lists all.
    """
    if name not in FAMILIES:
        raise KeyError(f"family={name!r} is unknown; use one of {sorted(FAMILIES)}")
    return FAMILIES[name]


def build(name, seed=0):
    """Build a reader with random weights.

    Parameters
    ----------
    name : str
        A key of `FAMILIES`.
    seed : int
        Seed of the weights; torch's global generator is left as it was.

    Returns
    -------
    (model, processor)
        Model in float32 and eval mode; both can be saved with `save`.
    """
    import torch

    family = family_named(name)
    tokenizer = build_tokenizer(family.special)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.build_model(tokenizer).eval()
    return model, family.build_processor(tokenizer, family.chat.template())


def save(model, processor, directory):
    """Write a reader in bfloat16 to a folder that the transformers Auto classes load.

    Parameters
    ----------
    model, processor
        As `build` returns them; the model is left unchanged.
    directory : path-like
    """
    import copy
    from pathlib import Path

    import torch

    stored = copy.deepcopy(model).to(torch.bfloat16)
    # A loaded model remembers the folder it came from; files that ship must not.
    for config in (stored.config, stored.config.text_config, stored.config.vision_config):
        config.name_or_path = ""
        config.dtype = torch.bfloat16
    stored.save_pretrained(directory)
    processor.save_pretrained(directory)
    # Weights are written readable by the owner only; packaged ones are for everybody.
    (Path(directory) / "model.safetensors").chmod(0o644)
    for name in ("tokenizer_config.json", "processor_config.json"):
        path = Path(directory) / name
        if path.exists() and "name_or_path" in path.read_text():
            raise RuntimeError(f"{path} records where its tokenizer came from; save a freshly built one")
