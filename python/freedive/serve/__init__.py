"""Serving: one engine for many clients, the OpenAI-compatible API over it, and pages on top (talk 5). Needs `freedive[serve]`."""

from .service import Service
from .stream import Busy, Closing, ContextOverflow, EngineFailure, Event, Stream

__all__ = ["Busy", "Closing", "ContextOverflow", "EngineFailure", "Event", "Service", "Stream"]
