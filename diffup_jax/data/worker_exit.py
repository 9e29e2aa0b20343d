"""Workers end with the process that started them, however that one ended.

A process that is killed cannot end its workers: they would wait for it for ever, and
keep their memory.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from typing import Any


def follow_parent(value: Any) -> Any:
    """Returns `value`; from its first call on, this worker ends with its parent.

    Does nothing in a process that no other one of Python's multiprocessing started.
    """
    _watch()
    return value


@functools.cache
def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait():
        parent.join()
        # Not sys.exit: that ends a thread, and the main one waits for work.
        os._exit(1)

    threading.Thread(target=wait, name="follow parent", daemon=True).start()
