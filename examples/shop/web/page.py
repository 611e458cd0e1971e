"""The page's HTML. Change a word here, save, and look at the browser: it reloads itself."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The corner shop</title>
<style>
  :root { color-scheme: light dark; --ink: light-dark(#26302b, #e6ece8);
          --soft: light-dark(#6b776f, #93a299); --paper: light-dark(#f6f4ee, #17201b);
          --card: light-dark(#fff, #202b25); --green: light-dark(#23744d, #5cc391) }
  * { box-sizing: border-box }
  body { margin: 0 auto; max-width: 58rem; padding: 2.5rem 1.25rem;
         background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
  h1 { font-size: 1.9rem; margin: 0 } h1 + p { margin: .1rem 0 1.75rem; color: var(--soft) }
  h2 { font-size: 1.05rem; margin: 2rem 0 .6rem }
  .products { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)) }
  .card { display: grid; grid-template-columns: auto 1fr auto; gap: 0 .8rem; align-items: center;
          background: var(--card); border-radius: .8rem; padding: .9rem 1rem; box-shadow: 0 1px 3px #0002 }
  .card i { font-size: 2rem; font-style: normal; grid-row: span 2 }
  .card span, footer, td:first-child { color: var(--soft); font-size: .88rem }
  .card form { grid-row: 1 / span 2; grid-column: 3 }
  button { border: 0; border-radius: .5rem; padding: .45rem .9rem; font: inherit; cursor: pointer;
           color: var(--paper); background: var(--green) }
  button:disabled { opacity: .35; cursor: default }
  table { width: 100%; border-collapse: collapse; background: var(--card); border-radius: .8rem;
          overflow: hidden }
  td { padding: .5rem 1rem; border-top: 1px solid #8882 } td:nth-child(3) { text-align: right }
  .queued { color: light-dark(#96690a, #e0b454) } .packing { color: light-dark(#2660a4, #7db3f0) }
  .shipped { color: var(--green) }
  .notice { background: light-dark(#fbe3df, #4a221c); border-radius: .6rem; padding: .7rem 1rem }
  .notice:empty { display: none }
  footer { margin-top: 2rem }
  td:last-child { width: 7rem }
</style>
<h1>The corner shop</h1>
<p>Four small services and a store, run by devloop</p>
<p class="notice">$error</p>
<main id="latest">$latest</main>
<script>
  // Keeps the orders moving, and reloads the page when another process of `web` answers.
  const main = document.getElementById("latest");
  const webPart = () => main.querySelector("[data-web]")?.dataset.web;
  const before = webPart();
  setInterval(async () => {
    try {
      const answer = await fetch("/latest");
      main.innerHTML = await answer.text();
      if (webPart() !== before) location.replace("/");
    } catch { /* web restarts: the next round finds it */ }
  }, 1000);
</script>
</html>
""")

LATEST = Template("""$notice
<div class="products">$products</div>
<h2>Latest orders</h2>
<table>$orders</table>
<footer data-web="$web">page by $web · data by $api</footer>
""")

PRODUCT = Template("""<div class="card"><i>$emoji</i><b>$name</b><span>€ $price · $stock left</span>
<form method="post" action="/buy"><button name="product" value="$id" $sold>Buy</button></form></div>
""")

ORDER = Template("""<tr><td>№ $id</td><td>$quantity &times; $product</td><td>€ $total</td>
<td class="$status">$status</td></tr>
""")
