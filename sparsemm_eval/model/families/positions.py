from sparsemm_eval.model.families.base import image_positions as prompt_positions  # noqa: F401
from sparsemm_eval.model.families.registry import family_of


def image_tokens(config, width, height, grid_thw=None):
    return family_of(config).image_tokens(config, width, height, grid_thw)


def image_token_id(config):
    return config.image_token_id
