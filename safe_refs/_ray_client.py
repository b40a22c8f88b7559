"""The old name of `_ray.client`: goes as soon as no caller uses it."""

from ._ray.client import NoAnswerError as LateError
from ._ray.client import broken, host, in_time, unavailable
from ._ray.client import in_background as aside
from ._ray.client import is_in_background as helps

__all__ = ["LateError", "aside", "broken", "helps", "host", "in_time", "unavailable"]
