"""transformers' common model and pipeline tests over every `Case` of tests/tiny.py, and a few that they lack."""

import contextlib
import copy
import inspect
import unittest
import unittest.mock

import hf_tests
import pytest
import torch
from tiny import CASES


hf = hf_tests.load()
torch_device = hf.modeling.torch_device
set_seed = hf.modeling.set_seed


@pytest.fixture(scope="module", autouse=True)
def tiny_models():
    hf_tests.save_tiny_models(hf.tiny_models)


class ModelTester:
    """The `model_tester` that the mixins talk to."""

    is_training = True
    batch_size = 3
    num_channels = 3

    def __init__(self, case):
        self.case, self.image_size, self.num_labels = case, case.image_size, case.num_labels
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            if isinstance(case.config.get(key), int):
                setattr(self, key, case.config[key])
        if len(case.hidden_states[0]) == 2:
            self.seq_length = case.hidden_states[0][0]

    def get_config(self):
        return self.case.make_config()

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": hf.modeling.floats_tensor(shape)}


def register_with_mixins(case):
    """The mixins decide by class name, through transformers' mapping tables, what gets labels and what has a loss."""
    tables = {
        "MODEL_MAPPING_NAMES": case.row.base_model,
        "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES": case.row.model,
        "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": case.row.classifier,
    }
    for table, model in tables.items():
        if model is not None:
            names = {**getattr(hf.modeling, table), case.row.config.model_type: model.__name__}
            setattr(hf.modeling, table, names)


class FindProcessors:
    """`getattr(transformers, name)` for a processor class that lives elsewhere."""

    def __getattr__(self, name):
        for case in CASES.values():
            for processor in (case.row.processor, case.row.processor_pil):
                if processor.__name__ == name:
                    return processor
        import transformers

        return getattr(transformers, name)


hf.pipeline.transformers_module = FindProcessors()


class ConformanceMixin:
    """Replaces mixin tests that assume one flat stack of layers, and adds a few checks."""

    case = None
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True  # else skipped unless the config file says "# Copyright 2023+"

    def setUp(self):
        super().setUp()
        set_seed(0)
        self.model_tester = ModelTester(self.case)

    def subTest(self, *args, **kwargs):
        """Not reported one by one: thousands of successes would take pytest longer than the tests."""
        return contextlib.suppress(unittest.SkipTest)

    def test_config(self):
        tester = hf.configuration.ConfigTester(
            self,
            config_class=self.case.row.config,
            has_text_modality=False,
            common_properties=self.case.common_properties,
            **self.case.config,
        )
        tester.run_common_tests()

    def test_forward_signature(self):
        for model_class in self.all_model_classes:
            names = list(inspect.signature(model_class.forward).parameters)
            self.assertEqual(names[1], "pixel_values")

    def test_logits_and_loss(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.case.row.model(config).to(torch_device).eval()
        with torch.no_grad():
            logits = model(**inputs).logits
            self.assertEqual(
                tuple(logits.shape), (self.model_tester.batch_size, self.case.num_labels, *self.case.logits)
            )
            size = (self.model_tester.batch_size, self.case.image_size, self.case.image_size)
            labels = torch.randint(0, self.case.num_labels, size, device=torch_device)
            out = model(**inputs, labels=labels)
            self.assertEqual(out.loss.ndim, 0)
            self.assertTrue(torch.isfinite(out.loss))
            torch.testing.assert_close(out.logits, logits)
            # pixels marked 255 must not count: the two halves average to the whole
            top, bottom = labels.clone(), labels.clone()
            top[:, size[1] // 2 :] = 255
            bottom[:, : size[1] // 2] = 255
            halves = model(**inputs, labels=top).loss + model(**inputs, labels=bottom).loss
            torch.testing.assert_close(halves / 2, out.loss, rtol=1e-4, atol=1e-5)
            self.assertIsInstance(model(**inputs, labels=labels, return_dict=False), tuple)

    def test_other_image_sizes(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.case.row.model(config).to(torch_device).eval()
        size = self.case.image_size
        for h, w in ((size, 2 * size), (2 * size, size), (2 * size, 2 * size)):
            with torch.no_grad():
                out = model(torch.randn(1, self.model_tester.num_channels, h, w, device=torch_device))
            ratio = self.case.logits[0] / size
            self.assertEqual(tuple(out.logits.shape[-2:]), (round(h * ratio), round(w * ratio)))

    def test_overfit(self):
        """Stands in for TrainingTesterMixin.test_training_overfit, which knows text only."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        torch.manual_seed(0)
        inputs = {name: torch.randn_like(value) for name, value in inputs.items()}  # those of the tester have no seed
        for key in list(config.to_dict()):
            if key.endswith("_dropout_prob") or key == "drop_path_rate":
                setattr(config, key, 0.0)
        model = self.case.row.model(config).to(torch_device).train()
        size = self.case.image_size
        labels = torch.zeros(self.model_tester.batch_size, size, size, dtype=torch.long, device=torch_device)
        labels[:, :, size // 2 :] = 1
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(80):
            optimizer.zero_grad()
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        self.assertLess(losses[-1], 0.5 * losses[0], losses)

    def test_model_get_set_embeddings(self):
        """The mixin wants an nn.Embedding; for pixels any module will do (PEFT and gradient checkpointing hook it)."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            try:
                self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            except NotImplementedError:
                self.skipTest(f"{model_class.__name__} has no get_input_embeddings")
            self.assertIsNone(model.get_output_embeddings())

    def test_torch_export(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(config).to(torch_device).eval()
                with torch.no_grad():
                    program = torch.export.export(model, (), inputs)
                    a, b = model(**inputs), program.module()(**inputs)
                torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)

    def test_attention_backends_with_large_weights(self):
        """The mixin compares eager and sdpa at init, where attention is nearly uniform: a wrong scaling passes."""
        if not self.has_attentions:
            self.skipTest("Model does not output attentions")
        real = torch.nn.functional.scaled_dot_product_attention
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class._from_config(config, attn_implementation="sdpa").to(torch_device).eval()
            set_seed(0)
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim > 1:
                        p.normal_(0, 1.5 / p[0].numel() ** 0.5)
            with (
                torch.no_grad(),
                unittest.mock.patch.object(
                    torch.nn.functional, "scaled_dot_product_attention", side_effect=real
                ) as spy,
            ):
                sdpa = model(**inputs)[0]
                self.assertGreaterEqual(spy.call_count, len(self.case.attentions), "sdpa asked for, not used")
                model.set_attn_implementation("eager")
                before = spy.call_count
                eager = model(**inputs)[0]
                weights = model(**inputs, output_attentions=True).attentions
                self.assertEqual(spy.call_count, before, "eager asked for, sdpa used")
            torch.testing.assert_close(sdpa, eager, rtol=1e-3, atol=1e-4)
            for w in weights:
                torch.testing.assert_close(w.sum(-1), torch.ones_like(w.sum(-1)), rtol=1e-4, atol=1e-4)

    def test_no_loss_kwargs(self):
        """Trainer does not divide by gradient_accumulation_steps when forward takes **kwargs, unless told."""
        head = self.case.row.model
        takes_kwargs = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(head.forward).parameters.values())
        self.assertFalse(getattr(head, "accepts_loss_kwargs", takes_kwargs), "set accepts_loss_kwargs = False")

    def _shapes(self, tensors):
        return [tuple(t.shape[1:]) for t in tensors]

    def test_hidden_states_output(self):
        for by_config in (False, True):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            if by_config:
                config.output_hidden_states = True
            else:
                inputs["output_hidden_states"] = True
            for model_class in self.all_model_classes:
                model = model_class(copy.deepcopy(config)).to(torch_device).eval()
                with torch.no_grad():
                    states = model(**inputs).hidden_states
                self.assertEqual(self._shapes(states), [tuple(s) for s in self.case.hidden_states], model_class)

    def test_attention_outputs(self):
        if not self.has_attentions:
            self.skipTest("Model does not output attentions")
        for by_config in (False, True):
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config._attn_implementation = "eager"
            if by_config:
                config.output_attentions = True
            else:
                inputs["output_attentions"] = True
            for model_class in self.all_model_classes:
                model = model_class._from_config(copy.deepcopy(config), attn_implementation="eager")
                model = model.to(torch_device).eval()
                with torch.no_grad():
                    out = model(**inputs)
                    with_states = model(**inputs, output_hidden_states=True)
                self.assertEqual(self._shapes(out.attentions), [tuple(a) for a in self.case.attentions], model_class)
                self.assertEqual(list(with_states.keys())[-1], "attentions")
                self.assertEqual(len(with_states), len(out) + 1)


def skipped(cls, reasons):
    for name, reason in reasons.items():
        matching = [n for n in dir(cls) if n == name or n.startswith(f"{name}_") and n[len(name) + 1 :][:1].isdigit()]
        if not matching:
            raise AttributeError(f"no test {name} to skip in {cls.__name__}")
        for n in matching:
            setattr(cls, n, unittest.skip(reason)(lambda self: None))
    return cls


def make_model_test(case):
    body = {
        "case": case,
        "__module__": __name__,
        "all_model_classes": tuple(filter(None, (case.row.base_model, case.row.model, case.row.classifier))),
        "pipeline_model_mapping": {"image-segmentation": case.row.model},
        "has_attentions": bool(case.attentions),
    }
    for name in dir(hf.pipeline.PipelineTesterMixin):  # the pipelines of other tasks would only add skips
        if name.startswith("test_pipeline_") and "image_segmentation" not in name:
            body[name] = None
    bases = (ConformanceMixin, hf.modeling.ModelTesterMixin, hf.pipeline.PipelineTesterMixin, unittest.TestCase)
    return skipped(type(f"{case.name}ModelTest", bases, body), case.skip)


for _case in CASES.values():
    register_with_mixins(_case)
    globals()[f"{_case.name}ModelTest"] = make_model_test(_case)
