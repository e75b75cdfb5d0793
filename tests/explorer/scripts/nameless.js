() =>
  [...document.querySelectorAll("button, input, select, a, [role=application], canvas:not([aria-hidden])")]
    .filter((one) => !one.closest("[aria-hidden]"))
    .filter((one) => !(one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.length || one.title))
    .map((one) => one.outerHTML.slice(0, 80));
