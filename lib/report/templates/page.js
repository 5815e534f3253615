const button = document.getElementById("fold"), folds = document.querySelectorAll("details.code");
function fold(open) {
  folds.forEach(one => { one.open = open; });
  button.textContent = open ? "Fold all code" : "Show all code";
  try { localStorage.setItem("medtune-code", open ? "open" : ""); } catch (refused) { /* a browser without storage forgets the choice */ }
}
if (button) {
  button.onclick = () => fold(button.textContent.startsWith("Show"));
  try { if (localStorage.getItem("medtune-code")) fold(true); } catch (refused) { /* same */ }
}
let folded = []; // style.css unfolds on paper what it can; a browser that cannot prints what is open
onbeforeprint = () => { folded = [...document.querySelectorAll("details:not([open])")]; folded.forEach(one => { one.open = true; }); };
onafterprint = () => folded.forEach(one => { one.open = false; });
