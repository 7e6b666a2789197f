"""The evaluation that a wrapper runs in: what lmms-eval was asked for that no wrapper can do is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError, UnsupportedError

#: Arguments of lmms-eval, and what to do instead.
REFUSED = {
    "use_cache": "leave it out. Its store knows neither weights nor head scores; the model_arg journal keeps "
    "answers, too, and finds them by everything they depend on",
    "cache_requests": "leave it out: requests hold functions, which cannot be stored",
    "system_instruction": "give the model_arg system_prompt, which is a text or the path of a file with it",
    "apply_chat_template": "leave it out: the checkpoint's chat template is always applied",
    "fewshot_as_multiturn": "leave it out: every question is asked without examples",
    "num_fewshot": "leave it out: examples would lose their images",
    "check_integrity": "leave it out: it looks for the tests of lmms-eval's own repository",
}


def check_evaluation() -> None:
    """Refuse an evaluation that would end in a crash, or in scores that are not what was asked for.

    Raises
    ------
    UnsupportedError
        Naming lmms-eval's argument and what to do instead.
    """
    given = compat.evaluation_arguments()
    for name, remedy in REFUSED.items():
        if given.get(name):
            raise UnsupportedError(f"--{name} {given[name]} is not supported: {remedy}")


def claim_results() -> Path | None:
    """The results file that lmms-eval will write at the end, so that no other evaluation writes it too.

    lmms-eval names the file after the second in which it began. The claim is an empty file beside it.

    Returns
    -------
    pathlib.Path or None
        None where lmms-eval writes no results.

    Raises
    ------
    ConfigError
        If another evaluation has claimed or written the file, or the folder cannot be written to.
    """
    given = compat.evaluation_arguments()
    tracker = given.get("evaluation_tracker")
    output = getattr(tracker, "output_path", None)
    if not output:
        return None
    folder = Path(output) / tracker.general_config_tracker.model_name_sanitized
    results = folder.absolute() / f"{given['datetime_str'].replace(':', '-')}_results.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("output_path", str(output), f"a folder to write to ({error.strerror})") from error
    try:
        if results.exists():
            raise FileExistsError
        claim_of(results).open("x").close()
    except FileExistsError as error:
        remedy = "a folder of its own: another evaluation began in the same second and writes"
        raise ConfigError("output_path", str(output), f"{remedy} {results.name} there too") from error
    except OSError as error:
        raise ConfigError("output_path", str(output), f"a folder to write to ({error.strerror})") from error
    return results


def claim_of(results: Path) -> Path:
    """The file that claims a results file."""
    return results.with_suffix(".claim")


def gen_kwargs_of_the_user() -> dict[str, Any]:
    """What ``--gen_kwargs`` says; tasks' own settings left out."""
    given = compat.evaluation_arguments().get("gen_kwargs")
    return given if isinstance(given, dict) else {}
