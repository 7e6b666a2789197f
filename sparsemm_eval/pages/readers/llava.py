"""LLaVA-NeXT readers at toy size: tiles and a thumbnail, with a Llama or a Mistral text tower."""

from sparsemm_eval.pages.readers.chat import ChatFormat
from sparsemm_eval.pages.readers.family import LAYERS, PATCH, TILE, finish, token_ids
from sparsemm_eval.pages.readers.tokenizer import SpecialTokens

SPECIAL = SpecialTokens(
    pad="<pad>",
    unk="<unk>",
    eos="</s>",
    bos="<s>",
    others=("<image>", "<|system|>", "<|user|>", "<|assistant|>"),
)
CHAT = ChatFormat(
    default_system="",
    system="<|system|>",
    close_system="",
    user="<|user|>",
    close_user="",
    assistant="<|assistant|>",
    close_assistant="</s>",
    image="<image>",
)


def _pinpoints():
    sides = (TILE, 2 * TILE, 3 * TILE)
    return [[height, width] for height in sides for width in sides]


def llava(text_config_name, **text):
    def build(tokenizer):
        import transformers

        text_config = getattr(transformers, text_config_name)(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=LAYERS,
            num_attention_heads=8,
            head_dim=32,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            tie_word_embeddings=False,
            **token_ids(tokenizer),
            **text,
        )
        vision_config = transformers.CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=TILE,
            patch_size=PATCH,
            projection_dim=128,
        )
        config = transformers.LlavaNextConfig(
            vision_config=vision_config,
            text_config=text_config,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            image_grid_pinpoints=_pinpoints(),
            image_seq_length=(TILE // PATCH) ** 2,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
        return finish(transformers.LlavaNextForConditionalGeneration(config), tokenizer)

    return build


def llava_processor(tokenizer, template):
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    image_processor = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=_pinpoints(),
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=template,
    )
