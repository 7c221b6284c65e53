"use strict";
// The table is the legend: a box hides a scheme in the plots of its section, and pointing at a row brings it out.
for (const section of document.querySelectorAll(".setting")) {
  const charts = section.querySelector(".charts");
  for (const box of section.querySelectorAll("input[data-series]")) {
    const name = "series-" + box.dataset.series;
    const row = box.closest("tr");
    const parts = charts.getElementsByClassName(name);
    box.addEventListener("change", () => {
      for (const part of parts) part.classList.toggle("hidden", !box.checked);
      row.classList.toggle("dim", !box.checked);
      for (const run of section.querySelectorAll("article." + name)) run.classList.toggle("off", !box.checked);
    });
    row.addEventListener("pointerenter", () => {
      charts.classList.add("focus");
      for (const part of parts) part.classList.add("focused");
    });
    row.addEventListener("pointerleave", () => {
      charts.classList.remove("focus");
      for (const part of parts) part.classList.remove("focused");
    });
  }
}
