"""Demonstrations of a model in the browser.

serve({"first": (model, processor)})               # a Gradio app: pictures, videos, cameras, two models side by side
write_space(folder, ["outputs/run"], "USER/NAME")  # that app as a Space of the Hub
write_static_page(model, processor, folder)        # a page that computes in the visitor's browser, without a server
"""

import importlib


def __getattr__(name: str):
    rooms = {"serve": "app", "write_space": "space", "push_space": "space", "write_static_page": "static_page"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{rooms[name]}", __name__), name)
