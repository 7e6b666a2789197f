"""Qwen2-VL under lmms-eval's simple protocol: one class per method."""

from sparsemm_eval.model.families.qwen2vl import QWEN2VL
from sparsemm_eval.model_wrappers import methods
from sparsemm_eval.model_wrappers.wrapper import Wrapper


class Qwen2VLSimple(Wrapper):
    """The family and protocol; the classes below add the method."""

    is_simple = True
    family = QWEN2VL


class Qwen2VLSparseMM(Qwen2VLSimple):
    """``qwen2vl_sparsemm``: cache cut by SparseMM's visual heads."""

    model_name = "qwen2vl_sparsemm"
    method = methods.SPARSEMM


class Qwen2VLFullKV(Qwen2VLSimple):
    """``qwen2vl_fullkv``: nothing evicted."""

    model_name = "qwen2vl_fullkv"
    method = methods.FULLKV


class Qwen2VLSnapKV(Qwen2VLSimple):
    """``qwen2vl_snapkv``: cache cut by SnapKV."""

    model_name = "qwen2vl_snapkv"
    method = methods.SNAPKV


class Qwen2VLPyramidKV(Qwen2VLSimple):
    """``qwen2vl_pyramidkv``: cache cut by PyramidKV."""

    model_name = "qwen2vl_pyramidkv"
    method = methods.PYRAMIDKV


class Qwen2VLAdaKV(Qwen2VLSimple):
    """``qwen2vl_adakv``: cache cut by AdaKV."""

    model_name = "qwen2vl_adakv"
    method = methods.ADAKV


class Qwen2VLRandom(Qwen2VLSimple):
    """``qwen2vl_random``: head budgets from random scores."""

    model_name = "qwen2vl_random"
    method = methods.RANDOM


class Qwen2VLMask(Qwen2VLSimple):
    """``qwen2vl_mask``: full cache, the heads with the highest visual scores masked."""

    model_name = "qwen2vl_mask"
    method = methods.MASK


class Qwen2VLMaskRandom(Qwen2VLSimple):
    """``qwen2vl_mask_random``: full cache, random other heads masked."""

    model_name = "qwen2vl_mask_random"
    method = methods.MASK_RANDOM
