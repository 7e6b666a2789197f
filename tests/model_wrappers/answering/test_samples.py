import pytest
from PIL import Image, ImageFile

from sparsemm_eval.errors import UnsupportedError
from sparsemm_eval.model.families.qwen2vl import FAMILY as QWEN2VL
from sparsemm_eval.model_wrappers.answering.generation import GenerationSettings
from sparsemm_eval.model_wrappers.answering.samples import Request, SampleError, SampleReader
from tests.model_wrappers.helpers import TASK, to_messages, to_visual

SETTINGS = GenerationSettings((), 5)


@pytest.fixture
def reader(build_wrapper):
    return build_wrapper("llava_fullkv")._loop.reader


def request(visuals=to_messages, doc_id=0, settings=SETTINGS, repeat=0):
    return Request(0, TASK, doc_id, "test", repeat, "question", visuals, settings)


def datasets(*documents):
    return {TASK: {"test": list(documents)}}


def document(image, question="what?"):
    return {"image": image, "question": question}


def picture(color="red", size=(128, 128), mode="RGB"):
    return Image.new(mode, size, color)


def test_a_sample_has_prompt_and_images(reader):
    sample = reader.read(request(), datasets(document(picture())))
    assert "what?" in sample.prompt
    assert len(sample.images) == 1
    assert sample.length > 64


def test_digests_tell_samples_apart(reader):
    known = datasets(document(picture()), document(picture()))
    first = reader.read(request(), known)
    assert reader.read(request(), known).digest == first.digest
    others = [
        reader.read(request(doc_id=1), known),
        reader.read(request(repeat=1), known),
        reader.read(request(settings=GenerationSettings((), 6)), known),
        reader.read(request(), datasets(document(picture("blue")))),
        reader.read(request(), datasets(document(picture(size=(128, 256))))),
        reader.read(request(), datasets(document(picture(), "why?"))),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    "visuals",
    [
        lambda _: [None],
        lambda _: 1 / 0,
        lambda _: ["no such file.png"],
        lambda _: [Image.open("no such file.png")],
    ],
)
def test_unreadable_images_name_their_sample(build_wrapper, visuals):
    reader = build_wrapper("llava_fullkv", simple=True)._loop.reader
    with pytest.raises(SampleError, match=f"^{TASK}/0: its images or prompt could not be read"):
        reader.read(request(visuals), datasets({}))


def test_half_a_surrogate_pair_names_its_sample(reader):
    with pytest.raises(SampleError, match=f"^{TASK}/0: .*UnicodeEncodeError"):
        reader.read(request(), datasets(document(picture(), "why \ud800?")))


def test_a_truncated_image_names_its_sample(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some of lmms-eval's tasks do
    picture(size=(256, 256)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    torn = Image.open(tmp_path / "torn.png")
    with pytest.raises(SampleError, match=f"^{TASK}/0: "):
        reader.read(request(), datasets(document(torn)))
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_missing_document_names_its_sample(reader):
    with pytest.raises(SampleError, match=f"^{TASK}/7: .*IndexError"):
        reader.read(request(doc_id=7), datasets())


def test_videos_and_audio_are_refused_by_name(reader, build_wrapper):
    def messages(_):
        return [{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}]

    with pytest.raises(UnsupportedError, match=f"{TASK}/0: .*video"):
        reader.read(request(messages), datasets({}))
    simple = build_wrapper("llava_fullkv", simple=True)._loop.reader
    with pytest.raises(UnsupportedError, match=f"{TASK}/0: .*str"):
        simple.read(request(lambda _: ["clip.mp4"]), datasets({}))


def test_image_files_and_nested_lists_are_read(build_wrapper, tmp_path):
    picture().save(tmp_path / "page.png")
    reader = build_wrapper("llava_fullkv", simple=True)._loop.reader
    visuals = [[str(tmp_path / "page.png")], [picture("blue")]]
    assert len(reader.read(request(lambda _: visuals), datasets({})).images) == 2
    assert reader.read(request(lambda _: None), datasets({})).images == ()


def test_image_modes(build_wrapper):
    llava = build_wrapper("llava_fullkv", simple=True)._loop.reader
    qwen = build_wrapper("qwen2vl_fullkv")._loop.reader
    assert isinstance(qwen, SampleReader)
    assert qwen.family is QWEN2VL
    for mode in ("RGBA", "L", "P"):
        known = datasets(document(picture(0, mode=mode)))
        for reader in (llava, qwen):
            assert reader.read(request(to_visual), known).images[0].mode == "RGB"


def test_another_palette_is_another_sample(build_wrapper):
    reader = build_wrapper("llava_fullkv", simple=True)._loop.reader
    digests = set()
    for color in ([200, 0, 0], [0, 0, 200]):
        image = Image.new("P", (32, 32))
        image.putpalette(color)
        digests.add(reader.read(request(to_visual), datasets(document(image))).digest)
    assert len(digests) == 2


def test_odd_document_ids_survive(reader):
    known = {TASK: {"test": {"2024": document(picture())}}}
    sample = reader.read(request(doc_id="2024"), known)
    assert sample.request.name == f"{TASK}/2024"


BOXES = [[16, 32, 80, 48], [0, 112, 16, 128]]


@pytest.mark.parametrize(("name", "visuals"), [("llava_fullkv", to_messages), ("qwen2vl_fullkv", to_visual)])
def test_boxes_name_the_image_tokens_they_lie_on(name, visuals, build_wrapper):
    reader = build_wrapper(name)._loop.reader
    known = datasets(document(picture()) | {"evidence": BOXES}, document(picture()))
    sample, without = (reader.read(request(visuals, doc), known) for doc in (0, 1))
    [image] = sample.images
    grid = reader.family.image_tokens(reader.config, *image.size, None).grid
    # a cell of the readers' grids has 16 pixels of the page, whatever the processor gets
    cells = [(2, 1), (2, 2), (2, 3), (2, 4), (7, 0)]
    assert sample.evidence == tuple(grid.first + row * grid.stride + column for row, column in cells)
    assert without.evidence == ()
    same = reader.read(request(visuals), datasets(document(picture())))
    assert sample.digest == same.digest


def test_boxes_follow_an_image_that_is_scaled(build_wrapper):
    reader = build_wrapper("qwen2vl_fullkv", max_pixels=64 * 64)._loop.reader
    known = datasets(document(picture()) | {"evidence": [[0, 0, 64, 32]]})
    sample = reader.read(request(to_visual), known)
    width, height = sample.images[0].size
    grid = reader.family.image_tokens(reader.config, width, height, None).grid
    assert (grid.rows, grid.columns) == (4, 4)
    assert sample.evidence == (0, 1)


@pytest.mark.parametrize("evidence", [None, [], "see page 3", ["page 3"], [[1, 2]], [{"page": 3}], 7])
def test_what_is_no_list_of_boxes_is_no_evidence(evidence, reader):
    known = datasets(document(picture()) | {"evidence": evidence})
    assert reader.read(request(), known).evidence == ()


def test_boxes_that_cannot_be_placed_are_refused(reader):
    outside = datasets(document(picture()) | {"evidence": [[0, 0, 129, 16]]})
    with pytest.raises(SampleError, match=r"box=.*<= 128"):
        reader.read(request(), outside)
    blind = datasets({"image": None, "question": "what?", "evidence": BOXES})
    with pytest.raises(SampleError, match=r"boxes beside 0 images.*exactly one image"):
        reader.read(request(), blind)
