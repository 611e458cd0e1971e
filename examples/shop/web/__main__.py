"""The shop's page: asks the API for products and orders, and places an order for each click.

GET  /             the page
GET  /latest       the part of it that changes, for the page's own script
POST /buy          product=tea → places an order and comes back to the page
GET  /healthz
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from html import escape
from string import Template
from urllib.parse import quote

from shared.web import App, Request, Response

from web.page import LATEST, ORDER, PAGE, PRODUCT

API_URL = os.environ.get("API_URL", "http://127.0.0.1:7081")

app = App("web")


class ApiError(Exception):
    """The API refused, or can't be reached."""


def ask(request: Request, path: str, body: object = None) -> tuple[object, str]:
    """What the API answers, and who answered. Trace and baggage headers travel along."""
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(API_URL + path, data, {"Content-Type": "application/json", **request.carried})
    try:
        with urllib.request.urlopen(call, timeout=10) as answer:
            return json.load(answer), answer.headers.get("X-Served-By", API_URL)
    except urllib.error.HTTPError as error:
        with error:
            raise ApiError(json.load(error).get("error", error.reason)) from None
    except OSError as error:
        raise ApiError(f"{API_URL} does not answer: {getattr(error, 'reason', error)}") from None


def fill(template: Template, **values: object) -> str:
    return template.substitute({key: escape(str(value)) for key, value in values.items()})


def latest(request: Request) -> str:
    try:
        products, answered = ask(request, "/products")
        orders, _ = ask(request, "/orders?limit=8")
    except ApiError as error:
        return LATEST.substitute(
            notice=fill(Template('<p class="notice">$text</p>'), text=error),
            products="",
            orders="",
            web=escape(app.served_by),
            api="nobody",
        )
    cards = "".join(
        fill(
            PRODUCT,
            **{**product, "price": f"{product['price']:.2f}"},
            sold="disabled" if not product["stock"] else "",
        )
        for product in products
    )
    rows = "".join(
        fill(
            ORDER,
            **{key: order[key] for key in ("id", "quantity", "product", "status")},
            total=f"{order['total']:.2f}",
        )
        for order in orders
    )
    nothing = '<tr><td colspan="4">none yet: buy something</td></tr>'
    return LATEST.substitute(
        notice="", products=cards, orders=rows or nothing, web=escape(app.served_by), api=escape(answered)
    )


@app.route("GET", "/healthz")
def healthz(_: Request) -> object:
    return {"status": "ok"}


@app.route("GET", "/")
def page(request: Request) -> object:
    return PAGE.substitute(latest=latest(request), error=escape(request.query.get("error", "")))


@app.route("GET", "/latest")
def part(request: Request) -> object:
    return latest(request)


@app.route("POST", "/buy")
def buy(request: Request) -> object:
    try:
        ask(request, "/orders", {"product": request.form().get("product", ""), "quantity": 1})
    except ApiError as error:
        return Response("", 303, {"Location": "/?error=" + quote(str(error))})
    return Response("", 303, {"Location": "/"})


if __name__ == "__main__":
    app.run(port=7080)
