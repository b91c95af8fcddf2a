"""The page of a scan in a real browser: slices, windows, links of the table, the coronal view."""

import browser
import chest
import fake_network
import numpy as np
import pytest
import SimpleITK as sitk

from auxseg.base.classes import COLOURS, to_rgb
from auxseg.prediction import outputs, overlay

SCRIPT = (
    browser.START
    + """
(async () => {
  const out = {};
  const choose = (id, value) => { byId(id).value = value; send(byId(id), new Event("input", {bubbles: true})); };
  await until(viewer);
  out.start = viewer(); out.coloured = coloured("canvas");
  choose("opacity", 100); out.nodule = pixel("canvas", NODULE);
  out.readout = point((NODULE[0] + 0.5) / 48, (NODULE[1] + 0.5) / 56);
  byId("class-nodule").click(); out.hidden = pixel("canvas", NODULE);
  press("o"); out.none = coloured("canvas");
  const windows = document.querySelectorAll("[data-window]");
  out.windows = Array.from(windows).map((each) => each.textContent);
  windows[0].click(); out.lung = pixel("canvas", SPINE);
  press("3"); out.bone = pixel("canvas", SPINE);
  out.pressed = Array.from(windows).map((each) => each.getAttribute("aria-pressed"));
  out.rings = document.querySelectorAll("#outlines ellipse").length;
  const ring = document.querySelector("#outlines ellipse");
  out.ring = ring && ["cy", "cx"].map((each) => Number(ring.getAttribute(each)));
  out.number = document.querySelector("#outlines text")?.textContent;
  byId("show-marks").click(); out.without = document.querySelectorAll("#outlines ellipse").length;
  const [first, lungs] = document.querySelectorAll("table.rows");
  const link = lungs.querySelector("a"); link.click();
  await until(() => "#" + viewer() === link.getAttribute("href")); out.followed = "#" + viewer() === link.getAttribute("href");
  out.before = byId("coronal-title").textContent;
  first.querySelector("tbody td").click();  // anywhere in the row
  await until(() => viewer() === out.start); out.row = viewer();
  out.after = byId("coronal-title").textContent;
  press("ArrowUp"); press("PageUp"); out.title = byId("item-title").textContent; out.position = byId("position").value;
  const box = byId("coronal").getBoundingClientRect();
  send(byId("coronal"), new MouseEvent("click", {clientX: box.left + 5, clientY: box.bottom - 1, bubbles: true}));
  await until(() => viewer() === "slice-0"); out.lowest = viewer();
  send(byId("picture"), new WheelEvent("wheel", {deltaY: -1, bubbles: true, cancelable: true}));
  await until(() => viewer() === "slice-1"); out.wheel = viewer();
  out.coronal = [byId("coronal").width, byId("coronal").height];
  out.overflow = document.documentElement.scrollWidth - window.innerWidth;
  finish(out);
})();
"""
)


@pytest.mark.parametrize("width", [1280, 500])
def test_the_slices_of_a_scan_in_a_real_browser(tmp_path, width):
    volume, spacing_mm = chest.draw(), 6.0
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((spacing_mm,) * 3)
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    outputs.predict(tmp_path / "scan.mha", tmp_path / "out", [fake_network.create((56, 56))])
    row, column, spine_row = 27, 39, 37  # the middle of the nodule, and the spine below it
    script = SCRIPT.replace("NODULE", f"[{row}, {column}]").replace("SPINE", f"[{spine_row}, 27]")
    dom, logged = browser.browse(tmp_path / "out" / "report.html", script=script, width=width)
    assert logged == []
    out = browser.results(dom)
    assert out["nodule"] == list(to_rgb(COLOURS["nodule"])) and len(set(out["hidden"])) == 1
    assert f"row {row}, column {column}: about " in out["readout"] and out["readout"].endswith("HU; nodule")
    assert out["coloured"] > 300 and out["none"] == 0 and out["windows"] == ["Lung", "Soft tissue", "Bone"]
    assert out["pressed"] == ["false", "false", "true"]
    assert out["rings"] >= 1 and out["number"] == "1" and out["without"] == 0
    assert out["ring"] == pytest.approx([row, column], abs=2)
    assert out["row"] == out["start"] and out["before"].endswith("with the most nodule")
    assert out["after"].endswith("through nodule 1")
    assert out["lung"] == [255, 255, 255]
    low, high = overlay.WINDOWS_HU["bone"]
    expected = 255 * (float(np.median(volume[10, 33:40, 26:30])) - low) / (high - low)
    assert out["bone"] == pytest.approx([expected] * 3, abs=40)  # JPEG, at an edge
    assert out["followed"] and (out["lowest"], out["wheel"]) == ("slice-0", "slice-1")
    assert out["title"].startswith(f"slice {out['position']}")
    assert out["coronal"] == [56, 24] and out["overflow"] <= 0
