"""How people see it: the Gradio app."""

from vitrail.demo.app import build_app, launch


__all__ = ["build_app", "launch"]
