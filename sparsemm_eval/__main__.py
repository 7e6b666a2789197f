"""``python -m sparsemm_eval``: the `sparsemm` command, for where scripts are not on the path."""

from sparsemm_eval.cli import main

if __name__ == "__main__":
    main()
