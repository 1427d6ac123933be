"""The report as a whole: summary.json, the images and the page."""

import base64
import json
import os
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import fake_run
from absl.testing import absltest, parameterized

from bcgd_jax.errors import UsageError
from bcgd_jax.report import files, read_summary, write_report
from bcgd_jax.report.gallery import write_gallery

_VOID = {"meta", "img", "br"}
_PICTURES = ["curves", "predictions", "weights", "alpha", "codes", "dead", "optimizer", "speed"]


class _Page(HTMLParser):
  """A page's elements; fails at tags that do not close in order."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.elements: list[tuple[str, dict[str, str]]] = []
    self.text: dict[str, str] = {}
    self._open: list[str] = []
    self.feed(text)
    self.close()
    assert not self._open, self._open

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
    self.elements.append((tag, {key: value or "" for key, value in attrs}))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_endtag(self, tag: str):
    assert self._open.pop() == tag, tag

  def handle_data(self, data: str):
    if self._open:
      self.text[self._open[-1]] = self.text.get(self._open[-1], "") + data + "\n"

  def all(self, tag: str) -> list[dict[str, str]]:
    return [attributes for name, attributes in self.elements if name == tag]


class QuantizedRunTest(parameterized.TestCase):
  """One report, read only."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.path = write_report(fake_run.write_run(cls.folder))
    cls.page = _Page(cls.path.read_text(encoding="utf-8"))

  def test_files_and_summary(self):
    self.assertEqual(self.path, self.folder / "report" / "report.html")
    self.assertCountEqual(
      os.listdir(self.folder / "report"),
      [*(f"{name}.png" for name in _PICTURES), "report.html", "summary.json"],
    )
    expected = {
      "model": "resnet8",
      "dataset": "digits",
      "num_parameters": 5393,
      "num_test_examples": 360,
      "weight_bits": 1,
      "activation_bits": 4,
      "float_bytes": 21572,
      "quantized_bytes": 694,
      "float_test_accuracy": 0.975,
      "quantized_test_accuracy": 0.95,
      "phase_seconds": {"float": 12.5, "quantized": 62.25},
    }
    text = (self.folder / "report" / "summary.json").read_text(encoding="utf-8")
    self.assertEqual(json.loads(text), expected)
    self.assertEqual(read_summary(self.folder), expected)

  def test_page_needs_nothing_else(self):
    page = self.page
    images = page.all("img")
    for image, name in zip(images, _PICTURES, strict=True):
      data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
      self.assertEqual(data, (self.folder / "report" / f"{name}.png").read_bytes())
      self.assertGreater(len(image["alt"]), 40)
    self.assertEmpty([e for e in page.elements if e[0] in ("script", "link", "iframe", "object")])
    self.assertEmpty([e for e in page.elements if "href" in e[1]])
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    self.assertStartsWith(policy, "default-src 'none'")
    for loader in ("@import", "url("):
      self.assertNotIn(loader, page.text["style"])

  def test_page_says_what_happened(self):
    page = self.page
    self.assertEqual(page.text["h1"].strip(), "resnet8 on digits")
    self.assertIn("weights from 32 to 1 bit, activations from 32 to 4 bits; 5,393", page.text["p"])
    for figure in ("97.50 %", "95.00 %", "31.1x", "1 min 15 s"):
      self.assertIn(figure, page.text["dd"])
    self.assertIn("-2.50 points against float", page.text["small"])
    self.assertIn("Accuracy on 360 test examples (one is 0.28 points)", page.text["span"])
    for cell in ("21.1 KiB", "694 B", "62.2", "74.8", "345,088"):  # 64 MACs a weight of 5392
      self.assertIn(f"{cell}\n", page.text["td"])
    for path in fake_run.PATHS:
      self.assertIn(f"{path}\n", page.text["th"])
    self.assertIn("Predictions\n", page.text["h2"])
    self.assertIn("on 3 of them the two networks disagree", page.text["span"])
    for row in ("Both right\n", "Only float right\n", "Only quantized right\n", "Both wrong\n"):
      self.assertIn(row, page.text["th"])
    for cell in ("94.44 %", "0.28 %", "0.56 %", "4.72 %"):  # 340, 1, 2 and 17 of 360
      self.assertIn(f"{cell}\n", page.text["td"])
    self.assertEqual(json.loads(page.text["pre"]), fake_run.CONFIG)

  def test_page_is_accessible_and_adapts(self):
    page = self.page
    self.assertEqual(page.all("html"), [{"lang": "en"}])
    self.assertIn("width=device-width", [m.get("content", "")[:18] for m in page.all("meta")])
    self.assertIn("prefers-color-scheme: dark", page.text["style"])
    self.assertLen(page.all("caption"), len(page.all("table")))
    self.assertTrue(all(cell.get("scope") in ("col", "row") for cell in page.all("th")))
    scrolling = [d for d in page.all("div") if d.get("class") == "scroll"]
    self.assertTrue(all(d["tabindex"] == "0" and d["aria-label"] for d in scrolling))


class WriteReportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

  def _write(self, **kwargs: Any) -> _Page:
    path = write_report(fake_run.write_run(self.folder, **kwargs))
    return _Page(path.read_text(encoding="utf-8"))

  def test_float_only_run(self):
    stale = self.folder / "report" / "alpha.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier run")
    page = self._write(quantized=False)
    self.assertFalse(stale.exists())
    self.assertIn("Trained in float: 32-bit weights and activations, 5,393", page.text["p"])
    self.assertNotIn("Quantized test accuracy", page.text["dt"])
    self.assertNotIn("Predictions", page.text["h2"])
    self.assertLen(page.all("img"), 5)  # all but predictions, alpha and codes
    summary = read_summary(self.folder)
    self.assertIsNone(summary["quantized_test_accuracy"])
    self.assertEqual(summary["float_test_accuracy"], 0.975)

  def test_without_histograms(self):
    fake_run.write_run(self.folder)
    (self.folder / "weights.json").unlink()
    page = _Page(write_report(self.folder).read_text(encoding="utf-8"))
    self.assertLen(page.all("img"), 7)

  def test_same_run_same_bytes(self):
    self._write(quantized=False)
    names = sorted(os.listdir(self.folder / "report"))
    first = [(self.folder / "report" / name).read_bytes() for name in names]
    self._write(quantized=False)
    self.assertEqual(first, [(self.folder / "report" / name).read_bytes() for name in names])

  def test_text_of_the_run_is_escaped(self):
    evil = '"><script>alert(1)</script>&amp;$x$'
    fake_run.write_run(self.folder)
    run = fake_run.make_run()
    run.update(model=evil, dataset=evil, phase_seconds={evil: 1.0})
    run["layers"][0].update(path=evil, kind=evil)
    files.write_json(self.folder / "run.json", run)
    files.write_json(self.folder / "config.json", {evil: evil})
    records = [{**r, "phase": evil} for r in fake_run.make_records()]
    fake_run.write_records(self.folder, records)
    gallery = fake_run.make_gallery(phases=(evil, evil), class_names=(evil,) * 4)
    write_gallery(self.folder, gallery)
    weights = {evil: {evil: fake_run.make_weights()["quantized"]["head/dense/kernel"]}}
    files.write_json(self.folder / "weights.json", weights)
    page = _Page(write_report(self.folder).read_text(encoding="utf-8"))
    self.assertEmpty(page.all("script"))
    self.assertEqual(page.text["h1"].strip(), f"{evil} on {evil}")
    self.assertEqual(json.loads(page.text["pre"]), {evil: evil})
    self.assertIn(evil, page.text["th"])
    self.assertIn(f"float {evil}", page.all("img")[1]["alt"])
    self.assertTrue(any(evil in image["alt"] for image in page.all("img")[2:]))

  def _write_unfinished(self, records: list[dict[str, Any]], *, tail: str = "") -> _Page:
    """The page of a run that has written records and config.json, and half of another record."""
    fake_run.write_records(self.folder, records)
    with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
      file.write(tail)
    files.write_json(self.folder / "config.json", fake_run.CONFIG)
    before = {path: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
    page = _Page(write_report(self.folder).read_text(encoding="utf-8"))
    after = {path: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
    self.assertEqual(before, after)
    return page

  def test_run_that_goes_on(self):
    records = [r for r in fake_run.make_records() if r["step"] <= 72]
    page = self._write_unfinished(records, tail='{"step": 76, "phase": "quan')
    self.assertIn("Not finished", page.text["p"])
    self.assertIn("Recorded up to step 72, in phase quantized.", page.text["p"])
    self.assertEqual(page.text["h1"].strip(), "resnet8 on digits")
    self.assertIn("So far\n", page.text["h2"])
    self.assertNotIn("Layers\n", page.text["h2"])
    # the float phase has been tested, the quantized one not: its loss is exp(-32 / 10) + 0.1
    for cell in ("40\n", "97.50 %\n", "72\n", "0.1408\n", "-\n"):
      self.assertIn(cell, page.text["td"])
    self.assertIn("25.00 % of it waiting for input", page.text["small"])
    recorded = [name for name in _PICTURES if name not in ("predictions", "weights")]
    names = [*(f"{name}.png" for name in recorded), "report.html"]
    self.assertCountEqual(os.listdir(self.folder / "report"), names)

  def test_run_before_its_first_validation(self):
    page = self._write_unfinished(fake_run.make_records()[:1])
    self.assertIn("Recorded up to step 4, in phase float.", page.text["p"])
    self.assertNotIn("Validation accuracy", page.text["dt"])
    self.assertLen(page.all("img"), 3)  # curves, optimizer, speed

  def test_run_without_a_training_record(self):
    record = {"step": 0, "phase": "float", "kind": "test", "accuracy": 0.5}
    page = self._write_unfinished([record])
    self.assertIn("50.00 %\n", page.text["td"])
    self.assertLen(page.all("img"), 1)

  def test_summary_of_an_earlier_run_does_not_stay(self):
    write_report(fake_run.write_run(self.folder))
    (self.folder / "run.json").unlink()
    write_report(self.folder)
    self.assertFalse((self.folder / "report" / "summary.json").exists())

  def test_folder_that_is_no_run_is_left_alone(self):
    with self.assertRaisesRegex(UsageError, "is not the folder of a run"):
      write_report(self.folder)
    self.assertEmpty(os.listdir(self.folder))

  def test_failure_keeps_the_old_page(self):
    fake_run.write_run(self.folder, quantized=False)
    page = self.folder / "report" / "report.html"
    page.parent.mkdir()
    page.write_bytes(b"old")
    broken = mock.patch.object(os, "replace", side_effect=OSError("disk full"))
    with broken, self.assertRaisesRegex(OSError, "disk full"):
      write_report(self.folder)
    self.assertEqual(os.listdir(page.parent), ["report.html"])
    self.assertEqual(page.read_bytes(), b"old")

  def test_summary_of_no_report(self):
    with self.assertRaisesRegex(UsageError, "summary.json is missing"):
      read_summary(self.folder)


if __name__ == "__main__":
  absltest.main()
