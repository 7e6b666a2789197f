"""What the page tasks' YAML files refer to: the image of a document, and its scores."""

from sparsemm_eval.tasks.pages.metrics import character_accuracy, exact_match


def doc_to_visual(doc):
    """The page as a list of one RGB image."""
    return [doc["image"].convert("RGB")]


def process_qa(doc, results):
    """Score one value question.

    Parameters
    ----------
    doc : dict
    results : list of str
        The answer, alone.

    Returns
    -------
    dict
        `exact_match`.
    """
    return {"exact_match": exact_match(results[0], doc["answer"])}


def process_ocr(doc, results):
    """Score one transcription: `character_accuracy`; parameters as in `process_qa`."""
    return {"character_accuracy": character_accuracy(results[0], doc["answer"])}
