"""Fills the store with products, then ends. It may run any number of times: stock that is there stays."""

from __future__ import annotations

import json

from shared.log import say
from shared.resp import Store

PRODUCTS = {
    "tea": {"name": "Green tea", "emoji": "🍵", "price": 4.5, "stock": 120},
    "coffee": {"name": "Coffee beans", "emoji": "☕", "price": 11.9, "stock": 60},
    "honey": {"name": "Heather honey", "emoji": "🍯", "price": 7.2, "stock": 40},
    "bread": {"name": "Rye bread", "emoji": "🍞", "price": 3.8, "stock": 25},
    "cheese": {"name": "Mountain cheese", "emoji": "🧀", "price": 9.6, "stock": 30},
    "pears": {"name": "Autumn pears", "emoji": "🍐", "price": 2.9, "stock": 80},
}


def main() -> None:
    store = Store.from_env()
    store("DEL", "products")
    for key, product in PRODUCTS.items():
        detail = dict(product)
        store("SET", f"stock:{key}", detail.pop("stock"), "NX")
        store("SET", f"product:{key}", json.dumps(detail))
        store("RPUSH", "products", key)
    say(f"{len(PRODUCTS)} products are in {store}")


if __name__ == "__main__":
    main()
