// The search among the sample texts; without it the page lacks the box and nothing else.
const box = document.querySelector("#search"), told = document.querySelector("#found");
if (box) {
  const rows = [...document.querySelectorAll(".texts tbody tr")];
  box.closest(".search").hidden = false;
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase(), ranges = [];
    let shown = 0;
    for (const row of rows) {
      let hit = wanted === "";
      for (const cell of row.querySelectorAll("td")) {
        const text = cell.firstChild;
        if (wanted === "" || !text) continue;
        const said = text.data.toLowerCase();
        for (let at = said.indexOf(wanted); at >= 0; at = said.indexOf(wanted, at + wanted.length)) {
          hit = true;
          if (said.length !== text.data.length) continue; // a letter that has another length in lower case
          const range = new Range();
          range.setStart(text, at);
          range.setEnd(text, at + wanted.length);
          ranges.push(range);
        }
      }
      row.hidden = !hit;
      shown += hit;
    }
    told.textContent = wanted === "" ? "" : `${shown} of ${rows.length} rows`;
    if (window.Highlight && CSS.highlights) CSS.highlights.set("found", new Highlight(...ranges));
  });
}
