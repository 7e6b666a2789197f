"""The lmms-eval model that all names share: one generate loop, loud failures, what cannot be done refused."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from loguru import logger

from sparsemm_eval import compat
from sparsemm_eval.errors import ConfigError, UnsupportedError
from sparsemm_eval.files import digest_of
from sparsemm_eval.heads.scores.lookup import check_made_for
from sparsemm_eval.heads.scores.recall import known_shares
from sparsemm_eval.methods.base import Method
from sparsemm_eval.model import checkpoint, placement
from sparsemm_eval.model.families.base import Family
from sparsemm_eval.model.families.registry import family_of
from sparsemm_eval.model.session import compress, with_head_scores
from sparsemm_eval.model.text_decoder import find_text_decoder
from sparsemm_eval.model_wrappers.answering.answerer import Answerer
from sparsemm_eval.model_wrappers.answering.failures import FailurePolicy, ending_all_ranks
from sparsemm_eval.model_wrappers.answering.generation import Defaults
from sparsemm_eval.model_wrappers.answering.loop import AnswerLoop
from sparsemm_eval.model_wrappers.answering.samples import SampleReader, read_requests
from sparsemm_eval.model_wrappers.arguments import Arguments
from sparsemm_eval.model_wrappers.manifests import CHAT, SIMPLE, model_names
from sparsemm_eval.model_wrappers.records import identity
from sparsemm_eval.model_wrappers.records.journal import Journal, journal_folder
from sparsemm_eval.model_wrappers.records.reporting import Report

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


class Wrapper(lmms):
    """A model under KV-cache compression, as lmms-eval sees it.

    Subclasses, which this module's ``__getattr__`` makes, name the method, the protocol (``is_simple``) and
    the family, or None where the checkpoint decides. The model_args are those of `Arguments`.

    Raises
    ------
    SparseMMError
        For arguments, checkpoints or head scores that cannot work; before anything is generated.
    """

    model_name: ClassVar[str]
    family: ClassVar[Family | None]
    method: ClassVar[Method]

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        with ending_all_ranks():
            check_evaluation()
            self.arguments = Arguments.parse(model_args, self.model_name, self.family)
            self.compression = self.arguments.compression(self.method)
            self.placement = placement.place(
                self.arguments.device, self.arguments.device_map, self.arguments.dtype
            )
            # lmms-eval reads these three.
            self.accelerator = self.placement.accelerator
            self._rank, self._world_size = self.placement.rank, self.placement.world_size
            self._results: Path | None = None  # the file that lmms-eval will write
            self._load()

    def _load(self) -> None:
        arguments = self.arguments
        source = checkpoint.find(arguments.pretrained, arguments.revision)
        self.family = self.family or family_of(source.config)
        arguments.check_family(self.family)
        limits = {name: getattr(arguments, name) for name in self.family.pixel_limits}
        loaded = checkpoint.load(source, self.placement, self.family, limits)
        self._model, self.processor = loaded.model, loaded.processor
        decoder = find_text_decoder(self._model)
        self.compression = with_head_scores(self.compression, self._model, decoder, arguments.pretrained)
        self._check_head_scores(loaded.fingerprint["weights"])
        self.identity = identity.describe(
            self.model_name,
            self.family.name,
            not self.is_simple,
            arguments,
            self.compression,
            loaded,
            self.device,
        )
        digest = digest_of(self.identity)
        reader = SampleReader(
            self.family,
            self._model.config,
            self.processor,
            chat=not self.is_simple,
            system_prompt=self._resolve_system_prompt(arguments.system_prompt),
            pixel_limits=loaded.pixel_limits,
        )
        folder = journal_folder(arguments.journal, self.model_name, digest)
        self._journal = None if folder is None else Journal(folder, self.identity, digest, self.rank)
        self._policy = FailurePolicy(arguments.on_error, arguments.max_skipped)
        context = self._model.config.get_text_config().max_position_embeddings
        names = identity.names_of(arguments, self.compression, loaded)
        heads = decoder.num_layers, decoder.num_heads, decoder.num_kv_heads
        self._report = Report(
            self.identity,
            names,
            digest,
            arguments,
            context,
            self.rank,
            self.world_size,
            partial(known_shares, arguments.pretrained, loaded.fingerprint["weights"], *heads),
            self.compression.kept_window,
        )
        self._loop = AnswerLoop(
            reader, self._journal, self._policy, self._report, self.batch_size, self.rank, self.world_size
        )

    def _check_head_scores(self, weights: str) -> None:
        scores = self.compression.head_scores
        if scores is None or self.arguments.foreign_head_scores:
            return
        warning = check_made_for(scores, weights, self.arguments.pretrained)
        if warning is not None:
            logger.warning(warning)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> Wrapper:
        """Build from lmms-eval's command line; ``--batch_size`` and ``--device`` may also be model_args."""
        try:
            given = simple_parse_args_string(arg_string)
        except ValueError as error:
            raise ConfigError("model_args", arg_string, "name=value pairs with commas between") from error
        for name, value in (additional_config or {}).items():
            # lmms-eval passes its own default of --batch_size, 1.
            if value is None or (name == "batch_size" and name in given and str(value) == "1"):
                continue
            if name in given and str(given[name]) != str(value):
                raise ConfigError(name, given[name], f"the same in model_args and in --{name} ({value})")
            given[name] = value
        return cls(**given)

    @property
    def config(self) -> Any:
        """The checkpoint's transformers config."""
        return self._model.config

    @property
    def model(self) -> Any:
        """The transformers model, never wrapped."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.placement.device

    @property
    def batch_size(self) -> int:
        """Samples per ``generate`` call."""
        return self.arguments.batch_size

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: the wrappers generate."""
        raise UnsupportedError(
            f"{self.model_name} generates answers: tasks by log-likelihood are not supported"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: each question gets a cache of its own."""
        raise UnsupportedError(f"{self.model_name} answers one round: multi-round tasks are not supported")

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer all requests, in their order.

        Raises
        ------
        SampleError
            With ``on_error=raise``, for the first sample that fails.
        TooManySkippedError
            With ``on_error=skip``, when more samples failed than allowed.
        """
        with ending_all_ranks(), ExitStack() as on_error:
            check_evaluation()
            if self.rank == 0 and self._results is None:
                self._results = claim_results()
            on_error.callback(self._release_results)
            if self._journal is not None:
                on_error.callback(self._journal.close)
            # The seed that lmms-eval was given with --seed.
            defaults = Defaults(
                self.family.default_max_new_tokens, torch.initial_seed(), frozenset(gen_kwargs_of_the_user())
            )
            todo, unused = read_requests(requests, not self.is_simple, defaults)
            if unused:
                logger.warning(
                    f"{self.model_name} makes no use of the gen_kwargs {', '.join(sorted(unused))}"
                )
            compression, share = self.compression, None
            if compression.pruner and compression.pruner.resizes and self.family.shrink_image is not None:
                # done here, since a session gets to see encoded images only
                compression, share = compression.without_pruning(), compression.image_share
            with compress(
                self._model, compression, decode=self.arguments.decode, kernel=self.arguments.kernel
            ) as session:
                answerer = Answerer(self._model, self.processor, self.family, session, self.device, share)
                results = self._loop.answer(todo, requests, self.task_dict, answerer)
            # The journal stays open for further requests; clean() closes it.
            on_error.pop_all()
            return results

    def clean(self) -> None:
        """Report the run, then free the model; lmms-eval calls it on all ranks after the last answer."""
        with ending_all_ranks():
            if self._journal is not None:
                self._journal.close()
            try:
                self.run_record = self._report.finish(self._policy, self._results)
            finally:
                self._release_results()
        super().clean()

    def _release_results(self) -> None:
        if self._results is not None:
            claim_of(self._results).unlink(missing_ok=True)


@cache
def __getattr__(attribute: str) -> type[Wrapper]:
    """The class of a model name under one of lmms-eval's protocols, as ``llava_snapkv__chat``."""
    name, _, protocol = attribute.rpartition("__")
    if f"__{protocol}" not in (CHAT, SIMPLE) or name not in model_names():
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    family, method = model_names()[name]
    title = "the checkpoint's own family" if family is None else family.title
    return type(
        name,
        (Wrapper,),
        {
            "__module__": __name__,
            "__doc__": f"``{name}``: {title}, {method.title}: {method.meaning}.",
            "is_simple": f"__{protocol}" == SIMPLE,
            "model_name": name,
            "family": family,
            "method": method,
        },
    )
