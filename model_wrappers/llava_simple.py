"""LLaVA-NeXT under lmms-eval's simple protocol: one class per method."""

from sparsemm_eval.model.families.llava import LLAVA
from sparsemm_eval.model_wrappers import methods
from sparsemm_eval.model_wrappers.wrapper import Wrapper


class LlavaSimple(Wrapper):
    """The family and protocol; the classes below add the method."""

    is_simple = True
    family = LLAVA


class LlavaSparseMM(LlavaSimple):
    """``llava_sparsemm``: cache cut by SparseMM's visual heads."""

    model_name = "llava_sparsemm"
    method = methods.SPARSEMM


class LlavaFullKV(LlavaSimple):
    """``llava_fullkv``: nothing evicted."""

    model_name = "llava_fullkv"
    method = methods.FULLKV


class LlavaSnapKV(LlavaSimple):
    """``llava_snapkv``: cache cut by SnapKV."""

    model_name = "llava_snapkv"
    method = methods.SNAPKV


class LlavaPyramidKV(LlavaSimple):
    """``llava_pyramidkv``: cache cut by PyramidKV."""

    model_name = "llava_pyramidkv"
    method = methods.PYRAMIDKV


class LlavaAdaKV(LlavaSimple):
    """``llava_adakv``: cache cut by AdaKV."""

    model_name = "llava_adakv"
    method = methods.ADAKV


class LlavaRandom(LlavaSimple):
    """``llava_random``: head budgets from random scores."""

    model_name = "llava_random"
    method = methods.RANDOM


class LlavaMask(LlavaSimple):
    """``llava_mask``: full cache, the heads with the highest visual scores masked."""

    model_name = "llava_mask"
    method = methods.MASK


class LlavaMaskRandom(LlavaSimple):
    """``llava_mask_random``: full cache, random other heads masked."""

    model_name = "llava_mask_random"
    method = methods.MASK_RANDOM
