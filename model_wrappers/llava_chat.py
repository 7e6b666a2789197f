"""LLaVA-NeXT under lmms-eval's chat protocol: one class per method."""

from sparsemm_eval.model.families.llava import LLAVA
from sparsemm_eval.model_wrappers import methods
from sparsemm_eval.model_wrappers.wrapper import Wrapper


class LlavaChat(Wrapper):
    """The family and protocol; the classes below add the method."""

    is_simple = False
    family = LLAVA


class LlavaSparseMM(LlavaChat):
    """``llava_sparsemm``: cache cut by SparseMM's visual heads."""

    model_name = "llava_sparsemm"
    method = methods.SPARSEMM


class LlavaFullKV(LlavaChat):
    """``llava_fullkv``: nothing evicted."""

    model_name = "llava_fullkv"
    method = methods.FULLKV


class LlavaSnapKV(LlavaChat):
    """``llava_snapkv``: cache cut by SnapKV."""

    model_name = "llava_snapkv"
    method = methods.SNAPKV


class LlavaPyramidKV(LlavaChat):
    """``llava_pyramidkv``: cache cut by PyramidKV."""

    model_name = "llava_pyramidkv"
    method = methods.PYRAMIDKV


class LlavaAdaKV(LlavaChat):
    """``llava_adakv``: cache cut by AdaKV."""

    model_name = "llava_adakv"
    method = methods.ADAKV


class LlavaRandom(LlavaChat):
    """``llava_random``: head budgets from random scores."""

    model_name = "llava_random"
    method = methods.RANDOM


class LlavaMask(LlavaChat):
    """``llava_mask``: full cache, the heads with the highest visual scores masked."""

    model_name = "llava_mask"
    method = methods.MASK


class LlavaMaskRandom(LlavaChat):
    """``llava_mask_random``: full cache, random other heads masked."""

    model_name = "llava_mask_random"
    method = methods.MASK_RANDOM
