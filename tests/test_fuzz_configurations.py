"""Random configurations and checkpoints: they work, or a ValueError or OSError says why not.

Each case counts once:
- works: the model is built, predicts numbers of the right shape, and its saved configuration is read back unchanged; of
  a checkpoint: the weights are those that were written, where that can be seen
- clear: a ValueError or OSError of at most 1,000 characters, with the file's name if there is a file
- wrong: anything else came of it
- raw: any other exception
Not one may be wrong or raw.
"""

import dataclasses
import io
import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tiny import CASES

from hf_segtx.inference import load_model
from hf_segtx.weights import load_backbone, load_original


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # torch warns about odd files
REPEATABLE = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def count(strategy, judge, examples, least_works):
    """Judges random cases, and asserts that none is wrong or raw, and that enough of them worked."""
    results, bad = Counter(), []

    @settings(REPEATABLE, max_examples=examples)
    @given(strategy)
    def run(case):
        try:
            verdict = judge(case)
        except (ValueError, OSError) as error:
            verdict = "clear" if len(str(error)) <= 1000 else f"wrong: a long message: {error}"
        except Exception as error:
            verdict = f"raw: {type(error).__name__} {error}"
        results[verdict.split(":")[0]] += 1
        if verdict.startswith(("wrong", "raw")):
            bad.append((verdict[:300], case))

    run()
    print(f"tried {results.total()}, {dict(results)}")
    for verdict, case in bad[:100]:
        print(verdict, case)
    assert results["wrong"] == results["raw"] == 0, bad[0]
    assert results["works"] >= least_works * results.total() and results["clear"] > 0.1 * results.total(), results


# ------------------------------------------------------------------------------------------------------ configurations

ODD = [
    float("nan"), float("inf"), -1, 0, None, "x", "", [], [0], [-1], ["x"], [None], [1], [1, 2, 3, 4, 5], {}, {"a": 1},
    10**9, 2**40, 1.5, True, False, [[1]], [float("nan")] * 4, [10**9] * 4, "relu", "mla", 1e-300, 0.999,
    {"0": "road"}, {"1": "road"}, {"0": "road", "2": "sky"}, ["road"], {"model_type": "convnext"}, {"model_type": "x"},
]  # fmt: skip
GEOMETRY = {"sr_ratios", "strides", "patch_sizes", "decoder_upsampling", "auxiliary_upsampling"}  # of large images only
KEEP = object()  # the field stays as it is
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.integers(-2, 20),
    st.floats(-0.5, 1.5),
    st.lists(st.integers(0, 5), min_size=3, max_size=5),
    st.lists(st.sampled_from([4, 8, 12, 16]), min_size=4, max_size=4),
)


def fields_of(name):
    unread = {"transformers_version", "architectures", "chunk_size_feed_forward", "is_encoder_decoder", "problem_type"}
    own = [field.name for field in dataclasses.fields(CASES[name].row.config) if field.name not in unread]
    return [*own, "num_labels", "attn_implementation", "output_attentions", "unknown_field"]


def mutations(name):
    """Up to three fields of the architecture, some set to anything."""
    fields = st.dictionaries(st.sampled_from(fields_of(name)), VALUES | st.just(KEEP), min_size=1, max_size=3)
    return fields.map(lambda fields: {field: value for field, value in fields.items() if value is not KEEP})


@pytest.mark.parametrize("name", CASES)
def test_random_configurations(name, tmp_path):
    case = CASES[name]

    def judge(fields):
        config = case.row.config(**{**case.config, "num_labels": 4, **fields})
        model = case.row.model(config).eval()
        config.save_pretrained(tmp_path)
        again = case.row.config.from_pretrained(tmp_path)
        if again.to_json_string() != config.to_json_string():
            return "wrong: read back otherwise"
        if not GEOMETRY & set(fields):
            with torch.no_grad():
                images = torch.zeros(1, config.num_channels, case.image_size, case.image_size)
                logits = model(images, return_dict=True).logits
            if logits.shape[1] != config.num_labels or not logits.isfinite().all():
                return f"wrong: logits {tuple(logits.shape)}, finite: {bool(logits.isfinite().all())}"
        return "works"

    count(mutations(name), judge, 400, least_works=0.05)


@pytest.mark.parametrize("name", CASES)
def test_random_configurations_of_files(name, tmp_path):
    """The model with its weights: another size is refused, too; the message has the file's name."""
    case = CASES[name]
    case.make_model().save_pretrained(tmp_path)
    case.row.processor().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())

    def judge(fields):
        (tmp_path / "config.json").write_text(json.dumps({**content, **fields}))
        try:
            load_model(tmp_path)
        except (ValueError, OSError) as error:
            return "clear" if str(tmp_path) in str(error) else f"wrong: does not name the file: {error}"
        return "works"

    count(mutations(name), judge, 150, least_works=0.05)


# --------------------------------------------------------------------------------------------------------- checkpoints


def as_bytes(state, kind):
    if kind == "safetensors":
        return save({name: x.contiguous() for name, x in state.items()})
    stream = io.BytesIO()
    if kind == "npz":
        np.savez(stream, **{name.replace(".", "/"): x.numpy() for name, x in state.items()})
    else:
        torch.save({"state_dict": state, "epoch": 3}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("name", ["segformer", "segmenter"])
def test_random_bytes(name, kind, tmp_path):
    """Files that are cut off, or of which bytes were changed, most of them near the beginning and the end."""
    model, file = CASES[name].make_model(), tmp_path / f"file.{kind}"
    whole = as_bytes(model.state_dict(), kind)
    heads = {"num_attention_heads": 4} if name == "segmenter" else {}
    last = len(whole) - 1
    places = st.one_of(st.integers(0, 3000), st.integers(last - 3000, last), st.integers(0, last))

    def judge(case):
        cut, changes = case
        content = bytearray(whole)
        for place, byte in changes:
            content[place] = byte
        file.write_bytes(content[:cut])
        clear = 0
        for load in (lambda: load_original(file, **heads), lambda: load_backbone(model, file)):
            try:
                load()
            except (ValueError, OSError) as error:
                clear += 1
                if file.name not in str(error) or len(str(error)) > 3000:
                    return f"wrong: {error}"
        return "clear" if clear else "works"

    changes = st.lists(st.tuples(places, st.integers(0, 255)), max_size=3)
    count(st.tuples(st.one_of(st.none(), places), changes), judge, 150, least_works=0 if kind == "npz" else 0.02)


def dropped(state, name):
    del state[name]


def replaced(change):
    def replace(state, name):
        state[name] = change(state[name])

    return replace


CHANGES = {  # of a tensor; whether the checkpoint may still be read, with the same weights
    "nothing": (lambda state, name: None, True),
    "other precision": (replaced(lambda x: x.double() if x.is_floating_point() else x), True),
    "dropped": (dropped, False),
    "added": (lambda state, name: state.update({f"{name}.more": torch.zeros(2)}), False),
    "transposed": (replaced(lambda x: x[None]), False),
    "cut": (replaced(lambda x: x.flatten()[:1]), False),
    "nan": (replaced(lambda x: x.float() * float("nan")), False),
    "integers": (replaced(lambda x: x.to(torch.int32) if x.is_floating_point() else x[None]), False),
    "empty": (replaced(lambda x: x.flatten()[:0]), False),
    "text": (lambda state, name: state.update({name: "x"}), False),
}
PREFIXES = st.sampled_from(["", "module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "a.b.c."])
CONTAINERS = st.sampled_from([None, "state_dict", "model", "model_state_dict"])


@pytest.mark.parametrize("name", CASES)
def test_random_state_dicts(name):
    """A tensor dropped, added, of another shape or type; prefixes and containers, which change nothing."""
    model = CASES[name].make_model()
    weights = model.state_dict()
    heads = {"num_attention_heads": 4, "image_size": 32} if "patch_size" in CASES[name].config else {}

    def judge(case):
        change, tensor, prefix, container = case
        state = {key: x.clone() for key, x in weights.items()}
        CHANGES[change][0](state, tensor)
        state = {prefix + key: x for key, x in state.items()}
        try:
            loaded = load_original({container: state} if container else state, **heads).state_dict()
        except ValueError as error:
            return f"wrong: {error}" if CHANGES[change][1] else "clear"
        same = loaded.keys() == weights.keys() and all(torch.equal(loaded[key], x) for key, x in weights.items())
        return "works" if same and CHANGES[change][1] else f"wrong: read with {change} of {tensor}"

    tensors = st.sampled_from([key for key in weights if not key.endswith("num_batches_tracked")])
    count(st.tuples(st.sampled_from(list(CHANGES)), tensors, PREFIXES, CONTAINERS), judge, 200, least_works=0.1)
