"""The shop's API: products and orders as JSON, kept in the store.

GET  /products            all products with their stock
GET  /orders?limit=10     the latest orders, newest first
GET  /orders/ID           one order
POST /orders              {"product": "tea", "quantity": 1} → 201 and the order, which the worker then ships
GET  /healthz             200 if the store answers
"""

from __future__ import annotations

import json
import time

from shared.resp import Store
from shared.web import App, Request, RequestError, Response

app = App("api")
store = Store.from_env()


@app.route("GET", "/healthz")
def healthz(_: Request) -> object:
    store("PING")
    return {"status": "ok"}


@app.route("GET", "/products")
def products(_: Request) -> object:
    names = [name.decode() for name in store("LRANGE", "products", 0, -1)]
    if not names:
        return []
    details = store("MGET", *(f"product:{name}" for name in names))
    stock = store("MGET", *(f"stock:{name}" for name in names))
    return [
        {"id": name, **json.loads(detail or b"{}"), "stock": int(count or 0)}
        for name, detail, count in zip(names, details, stock, strict=True)
    ]


@app.route("GET", "/orders")
def orders(request: Request) -> object:
    limit = request.query.get("limit", "10")
    if not limit.isdecimal() or not 1 <= int(limit) <= 100:
        raise RequestError(400, "limit is a number from 1 to 100")
    ids = store("LRANGE", "orders", 0, int(limit) - 1)
    found = store("MGET", *(b"order:" + each for each in ids)) if ids else []
    return [json.loads(order) for order in found if order]


@app.route("GET", r"/orders/(\d+)")
def order(_: Request, number: str) -> object:
    found = store("GET", f"order:{number}")
    if found is None:
        raise RequestError(404, f"there is no order {number}")
    return json.loads(found)


@app.route("POST", "/orders")
def place(request: Request) -> object:
    wanted = request.json()
    product, quantity = wanted.get("product"), wanted.get("quantity", 1)
    detail = store("GET", f"product:{product}")
    if detail is None:
        raise RequestError(404, f"there is no product {product!r}")
    if not isinstance(quantity, int) or not 1 <= quantity <= 10:
        raise RequestError(400, "quantity is a number from 1 to 10")
    if store("DECRBY", f"stock:{product}", quantity) < 0:
        store("INCRBY", f"stock:{product}", quantity)
        raise RequestError(409, f"{product} is sold out")
    number = store("INCR", "orders:last")
    placed = {
        "id": number,
        "product": product,
        "quantity": quantity,
        "total": round(json.loads(detail)["price"] * quantity, 2),
        "status": "queued",
        "placed": time.time(),
    }
    store("SET", f"order:{number}", json.dumps(placed))
    store("LPUSH", "orders", number)
    store("LTRIM", "orders", 0, 999)
    store("LPUSH", "orders:queue", number)
    return Response(placed, 201)


if __name__ == "__main__":
    app.run(port=7081)
