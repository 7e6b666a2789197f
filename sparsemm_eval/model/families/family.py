from sparsemm_eval.model.families.base import Family  # noqa: F401
