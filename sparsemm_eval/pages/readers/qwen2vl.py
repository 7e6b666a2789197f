"""A Qwen2-VL reader at toy size: native resolution, M-RoPE, seven query heads per KV head."""

from sparsemm_eval.pages.readers.chat import ChatFormat
from sparsemm_eval.pages.readers.family import LAYERS, PATCH, finish, token_ids
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(
    pad="<|endoftext|>",
    unk="<unk>",
    eos="<|im_end|>",
    bos=None,
    others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)
CHAT = ChatFormat(
    default_system="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    system="<|im_start|>system\n",
    close_system="<|im_end|>\n",
    user="<|im_start|>user\n",
    close_user="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    close_assistant="<|im_end|>\n",
    image="<|vision_start|><|image_pad|><|vision_end|>",
)


def qwen2vl(tokenizer):
    import transformers

    token = tokenizer.convert_tokens_to_ids
    text_config = transformers.Qwen2VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=224,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=7,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        # Sections take turns (time, row, column): the fast turns tell neighbouring cells apart, and all slow
        # ones go to the time, the same for a whole image, so that contents compare over any distance. A wider
        # model (336) with the training's learning rate learned to read, but not to look up.
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [0, 0, 2, 0, 1, 1, 0, 1, 1, 10, 0, 0],
        },
        tie_word_embeddings=False,
        **token_ids(tokenizer),
    )
    vision_config = {
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 224,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": PATCH // 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    config = transformers.Qwen2VLConfig(
        text_config=text_config.to_dict(),
        vision_config=vision_config,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return finish(transformers.Qwen2VLForConditionalGeneration(config), tokenizer)


def qwen2vl_processor(tokenizer, template):
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    settings = {
        "patch_size": PATCH // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 8 * PATCH * 8 * PATCH, "longest_edge": 32 * PATCH * 32 * PATCH},
    }
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        video_processor=Qwen2VLVideoProcessor(**settings),
        tokenizer=tokenizer,
        chat_template=template,
    )
