"""How people see it: the Gradio app, and the Space made of it."""

from vitrail.demo.app import build_app, launch
from vitrail.demo.engine import Engine


__all__ = ["Engine", "build_app", "launch"]
